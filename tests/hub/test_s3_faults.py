"""S3: faults of a store, after which all is as a quiet run leaves it: the object, the name, and no parts of uploads."""

from __future__ import annotations

import datetime
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hub_objects import MakeObject, Object
from hub_servers import S3Store

from ddct_format import open_archive, pack
from ddct_format.errors import HubError
from ddct_format.hub import Hub, HubOptions, open_hub
from ddct_format.hub.fetch import fetch_archive
from ddct_format.hub.s3 import S3Hub

PARTS = 17 << 20
"""Bytes that go in two parts."""


class Place:
    """A prefix of its own."""

    def __init__(self, store: S3Store) -> None:
        import boto3

        self.store = store
        self.prefix = secrets.token_hex(8)
        self.client: Any = boto3.client("s3", endpoint_url=store.url)

    def hub(self) -> Hub:
        return open_hub(f"s3://bucket/{self.prefix}", HubOptions(endpoint=self.store.url))

    def fault(self, match: str, mode: str, **details: Any) -> None:
        method, _, rest = match.partition(" ")
        self.store.fault(f"^{method} /bucket/{self.prefix}/{rest}", mode, **details)

    def publish_until_done(self, thing: Object) -> list[HubError]:
        errors = []
        for _ in range(3):
            try:
                self.hub().put_archive("run", thing.pointer(), thing.path)
            except HubError as error:
                errors.append(error)
            else:
                return errors
        raise errors[-1]

    def keys(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket="bucket", Prefix=self.prefix).get("Contents", ())
        return [entry["Key"].removeprefix(self.prefix + "/") for entry in listed]

    def uploads(self) -> list[str]:
        return [upload["Key"] for upload in self.client.list_multipart_uploads(Bucket="bucket").get("Uploads", ())]

    def assert_as_after_a_quiet_run(self, thing: Object) -> None:
        assert self.keys() == [f"objects/{thing.sha256[:2]}/{thing.sha256}.ddct", "refs/run.json"]
        assert self.hub().get_pointer("run") == thing.pointer()
        assert b"".join(self.hub().read_archive("run", thing.pointer(), 0)) == thing.path.read_bytes()
        assert self.uploads() == []


@pytest.fixture
def place(s3: str, s3_store: S3Store) -> Place:
    return Place(s3_store)


@pytest.fixture
def small(make_object: MakeObject) -> Object:
    return make_object(secrets.token_bytes(100_000))


@pytest.fixture
def large(make_object: MakeObject) -> Object:
    return make_object(secrets.token_bytes(1 << 20) * (PARTS >> 20))


@pytest.mark.parametrize(
    "fault",
    [
        ("PUT objects/.*partNumber=2", "status", 3),
        ("PUT objects/.*partNumber=2", "drop", 3),
        ("PUT objects/.*partNumber=1", "after", 1),
        ("POST objects/.*uploads", "status", 3),
        ("POST objects/.*uploadId", "after", 3),
        ("POST objects/.*uploadId", "status", 3),
        ("PUT refs/", "drop", 3),
    ],
    ids=lambda fault: f"{fault[0]}-{fault[1]}-{fault[2]}",
)
def test_an_upload_in_parts_that_breaks_leaves_no_parts(
    place: Place, large: Object, fault: tuple[str, str, int]
) -> None:
    match, mode, times = fault
    place.fault(match, mode, times=times, status=500, code="InternalError")
    assert len(place.publish_until_done(large)) <= 1
    place.assert_as_after_a_quiet_run(large)


@pytest.mark.parametrize("match", ["PUT objects/", "PUT refs/", "GET objects/", "GET refs/"])
@pytest.mark.parametrize("mode", ["after", "drop", "cut", "status"])
def test_a_fault_on_the_way_changes_nothing_in_the_end(place: Place, small: Object, match: str, mode: str) -> None:
    place.fault(match, mode, status=500, code="InternalError")
    assert len(place.publish_until_done(small)) <= 1
    place.assert_as_after_a_quiet_run(small)


def test_a_store_that_asks_for_silence_is_left_alone_for_a_minute(place: Place) -> None:
    for status, code in ((503, "SlowDown"), (429, "TooManyRequests")):
        place.fault("GET refs/", "status", times=9, status=status, code=code)
        with pytest.raises(HubError) as caught:
            place.hub().get_pointer("run")
        assert caught.value.retry_after == 60
        place.store.faults.clear()


def test_refused_credentials_are_said_to_be_refused(place: Place) -> None:
    place.fault("GET refs/", "status", times=3, status=403, code="InvalidAccessKeyId")
    with pytest.raises(HubError, match="InvalidAccessKeyId"):
        place.hub().get_pointer("run")


def test_missing_credentials_say_where_to_put_them(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(HubError, match="aws configure"):
        place.hub().get_pointer("run")
    with pytest.raises(HubError, match="aws configure"):
        open_archive(f"s3://bucket/{place.prefix}/x.ddct")


def test_a_download_that_breaks_goes_on_where_it_ended(place: Place, large: Object, tmp_path: Path) -> None:
    place.publish_until_done(large)
    place.fault("GET objects/", "cut", times=2)
    assert fetch_archive(place.hub(), "run", large.pointer(), tmp_path / "part") == large.size
    assert (tmp_path / "part").read_bytes() == large.path.read_bytes()


def test_an_object_of_the_right_size_with_other_bytes_is_replaced(place: Place, small: Object) -> None:
    key = f"{place.prefix}/objects/{small.sha256[:2]}/{small.sha256}.ddct"
    place.client.put_object(Bucket="bucket", Key=key, Body=bytes(small.size))
    place.publish_until_done(small)
    place.assert_as_after_a_quiet_run(small)


def test_old_uploads_are_aborted_and_young_ones_are_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = place.hub()
    assert isinstance(hub, S3Hub)
    for key in ("objects/aa/old.ddct", "objects/aa/young.ddct"):
        place.client.create_multipart_upload(Bucket="bucket", Key=f"{place.prefix}/{key}")
    now = datetime.datetime.now(datetime.UTC)
    real = hub._unfinished_uploads

    def with_dates(prefix: str) -> list[dict[str, Any]]:  # the store in these tests tells none
        found = real(prefix) or []
        for upload in found:
            upload["Initiated"] = now - datetime.timedelta(hours=25 if "old" in upload["Key"] else 23)
        return found

    monkeypatch.setattr(hub, "_unfinished_uploads", with_dates)
    assert hub.remove_leftovers() == 1
    assert place.uploads() == [f"{place.prefix}/objects/aa/young.ddct"]
    place.client.abort_multipart_upload(
        Bucket="bucket", Key=place.uploads()[0], UploadId=(real("") or [])[0]["UploadId"]
    )


@pytest.mark.parametrize("code", ["NotImplemented", "AccessDenied"])
def test_a_store_that_does_not_list_uploads_is_usable(place: Place, large: Object, code: str) -> None:
    place.store.fault("^GET /bucket?.*uploads", "status", times=99, status=501 if "Not" in code else 403, code=code)
    place.publish_until_done(large)
    assert place.hub().remove_leftovers() == 0
    place.store.faults.clear()
    place.assert_as_after_a_quiet_run(large)


def test_kill_9_in_the_middle_of_a_push_costs_nothing_but_the_time(
    place: Place, model_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(*model_pair, tmp_path / "tuned.ddct")
    command = [
        sys.executable,
        "-m",
        "ddct_format",
        "push",
        tmp_path / "tuned.ddct",
        f"s3://bucket/{place.prefix}",
        "run",
    ]
    command += ["--endpoint", place.store.url]
    place.fault("GET objects/", "slow", seconds=8)  # the reading back, before the name is set
    victim = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not place.keys():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert place.hub().get_pointer("run") is None
    assert subprocess.run(command, timeout=60).returncode == 0
    assert len(place.keys()) == 2
    assert place.uploads() == []
