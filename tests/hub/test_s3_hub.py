"""S3: uploads in parts, conditions, and damage."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pytest
from hub_objects import MakeObject

from ddct_format.errors import HubError
from ddct_format.hub import Hub, HubOptions, open_hub
from ddct_format.hub.fetch import fetch_archive


@pytest.fixture
def prefix() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def hub(s3: str, prefix: str) -> Hub:
    return open_hub(f"s3://bucket/{prefix}", HubOptions(endpoint=s3))


@pytest.fixture
def client(s3: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=s3)


def test_a_large_archive_goes_in_parts(hub: Hub, make_object: MakeObject, tmp_path: Path) -> None:
    thing = make_object(os.urandom(1 << 20) * 17)
    hub.put_archive("run", thing.pointer(), thing.path)
    fetch_archive(hub, "run", thing.pointer(), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == thing.path.read_bytes()


def test_parts_of_a_dead_writer_are_cleared_by_the_next(
    hub: Hub, client: Any, prefix: str, make_object: MakeObject
) -> None:
    thing = make_object(os.urandom(1 << 20) * 17)
    key = f"{prefix}/objects/{thing.sha256[:2]}/{thing.sha256}.ddct"
    client.create_multipart_upload(Bucket="bucket", Key=key)
    hub.put_archive("run", thing.pointer(), thing.path)
    assert not client.list_multipart_uploads(Bucket="bucket").get("Uploads")


def test_an_object_of_the_wrong_size_is_replaced(hub: Hub, client: Any, prefix: str, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    key = f"{prefix}/objects/{thing.sha256[:2]}/{thing.sha256}.ddct"
    client.put_object(Bucket="bucket", Key=key, Body=b"arch")
    hub.put_archive("run", thing.pointer(), thing.path)
    assert b"".join(hub.read_archive("run", thing.pointer(), 0)) == b"archive"


def test_two_publishers_of_one_name_do_not_overwrite_each_other_unseen(
    hub: Hub, make_object: MakeObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = make_object(b"ours"), make_object(b"theirs")
    read_pointer = hub._read_pointer  # type: ignore[attr-defined]

    def read_then_lose_the_race(name: str) -> Any:
        found = read_pointer(name)
        monkeypatch.undo()
        hub.put_archive(name, theirs.pointer(), theirs.path)
        return found

    monkeypatch.setattr(hub, "_read_pointer", read_then_lose_the_race)
    with pytest.raises(HubError, match="somebody else published"):
        hub.put_archive("run", ours.pointer(), ours.path)
    assert hub.get_pointer("run") == theirs.pointer()


@pytest.mark.parametrize("location", ["s3://", "s3://Bucket", "s3://b", "s3://bucket/../x", "s3://bucket/a//b"])
def test_a_location_is_bucket_and_prefix(location: str) -> None:
    with pytest.raises(HubError, match="s3://bucket"):
        open_hub(location)


def test_a_bucket_that_is_not_there_is_said_to_be_missing(s3: str, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    with pytest.raises(HubError, match="bucket"):
        open_hub("s3://no-such-bucket", HubOptions(endpoint=s3)).put_archive("run", thing.pointer(), thing.path)
