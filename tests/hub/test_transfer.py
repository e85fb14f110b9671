"""Publishing is idempotent and never takes over a stranger's name; pulling brings back the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_objects import MakeObject
from hub_servers import MiniHub
from safetensors.numpy import load_file

from ddct_format import pack, unpack
from ddct_format.errors import BaseMismatchError, CorruptError, HubError, OutputExistsError
from ddct_format.hub import Hub, HubOptions, describe_archive, open_hub, publish, pull, push


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    (tmp_path / "hub").mkdir()
    return open_hub(str(tmp_path / "hub"))


@pytest.fixture
def archive(tmp_path: Path, model_pair: tuple[Path, Path]) -> Path:
    base, tuned = model_pair
    pack(base, tuned, tmp_path / "tuned.ddct")
    return tmp_path / "tuned.ddct"


def test_publishing_twice_changes_nothing(hub: Hub, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    assert publish(hub, "run", thing.pointer(), thing.path) == thing.pointer()
    before = hub.get_pointer("run")
    thing.path.unlink()  # what is there already is not needed again
    assert publish(hub, "run", thing.pointer(), thing.path) == before


def test_publishing_after_a_crash_between_data_and_pointer_completes_it(
    hub: Hub, make_object: MakeObject, tmp_path: Path
) -> None:
    thing = make_object(b"archive")
    hub.put_archive("run", thing.pointer(), thing.path)
    (tmp_path / "hub/refs/run.json").unlink()
    publish(hub, "run", thing.pointer(), thing.path)
    assert hub.get_pointer("run") == thing.pointer()


def test_the_same_content_in_another_compression_is_left_alone(hub: Hub, make_object: MakeObject) -> None:
    first, second = make_object(b"compressed"), make_object(b"compressed better")
    publish(hub, "run", first.pointer("c"), first.path)
    assert publish(hub, "run", second.pointer("c"), second.path) == first.pointer("c")
    assert not hub.has_archive("run", second.pointer("c"))


def test_a_pointer_whose_object_is_lost_gets_its_object_back(hub: Hub, make_object: MakeObject, tmp_path: Path) -> None:
    thing = make_object(b"archive")
    publish(hub, "run", thing.pointer(), thing.path)
    for path in tmp_path.glob("hub/objects/*/*"):
        path.unlink()
    publish(hub, "run", thing.pointer(), thing.path)
    assert hub.has_archive("run", thing.pointer())


def test_another_model_under_the_name_is_not_overwritten(hub: Hub, make_object: MakeObject) -> None:
    theirs, ours = make_object(b"theirs"), make_object(b"ours")
    publish(hub, "run", theirs.pointer("1"), theirs.path)
    with pytest.raises(HubError, match="another model"):
        publish(hub, "run", ours.pointer("2"), ours.path)
    with pytest.raises(HubError, match="another model"):
        publish(hub, "run", ours.pointer("2"), ours.path, replaces="0" * 64)
    assert hub.get_pointer("run") == theirs.pointer("1")


def test_what_the_publisher_published_itself_is_replaced(hub: Hub, make_object: MakeObject) -> None:
    old, new = make_object(b"old"), make_object(b"new")
    publish(hub, "run", old.pointer("1"), old.path)
    publish(hub, "run", new.pointer("2"), new.path, replaces=old.sha256)
    assert hub.get_pointer("run") == new.pointer("2")
    assert hub.has_archive("run", old.pointer("1"))


def test_an_archive_that_is_not_what_its_pointer_says_is_not_published(hub: Hub, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    with pytest.raises(HubError):
        publish(hub, "run", replace(thing.pointer(), sha256="0" * 64), thing.path)
    assert hub.list_names() == ()


def test_push_and_pull_bring_back_the_same_bits(
    hub: Hub, archive: Path, model_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = model_pair
    pointer = push(hub, "team/tuned", archive)
    assert pointer == describe_archive(archive) == hub.get_pointer("team/tuned")
    report = pull(hub, "team/tuned", base, tmp_path / "out")
    assert report.applied == report.tensors == 4
    assert (report.content_id, report.target_id) == (pointer.content_id, pointer.target_id)
    assert report.fetched == archive.stat().st_size
    unpack(archive, base, tmp_path / "direct")
    pulled, direct = (tmp_path / name / "model.safetensors" for name in ("out", "direct"))
    assert pulled.read_bytes() == direct.read_bytes()
    assert load_file(pulled).keys() == load_file(base / "model.safetensors").keys()
    assert not list(tmp_path.glob(".*"))


def test_a_pull_that_breaks_keeps_what_came_and_the_next_one_goes_on(
    hf_lfs: MiniHub, archive: Path, model_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    options = HubOptions(endpoint=hf_lfs.url, token_file=str(hf_lfs.token_file))
    remote = open_hub("hf://acme/pulled", options)
    pointer = push(remote, "tuned", archive)
    hf_lfs.fault(f"GET /_lfs/{pointer.sha256}", "cut")
    hf_lfs.fault(f"GET /_lfs/{pointer.sha256}", "status", status=403, times=20)
    with pytest.raises(HubError):
        pull(remote, "tuned", model_pair[0], tmp_path / "out")
    (part,) = tmp_path.glob(".*.ddct-part")
    assert 0 < part.stat().st_size < pointer.size
    assert not (tmp_path / "out").exists()
    missing = pointer.size - part.stat().st_size
    hf_lfs.clear_faults()
    report = pull(open_hub("hf://acme/pulled", options), "tuned", model_pair[0], tmp_path / "out")
    assert report.fetched == missing
    assert not list(tmp_path.glob(".*"))


def test_the_commands_push_list_and_pull(
    hf_lfs: MiniHub, archive: Path, model_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    reach = ["--endpoint", hf_lfs.url, "--token-file", str(hf_lfs.token_file), "--json"]
    hub = "hf://acme/commands"

    def ddct(*arguments: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "ddct_format", *map(str, arguments), *reach]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    assert ddct("push", archive, hub, "tuned")["sha256"] == describe_archive(archive).sha256
    assert ddct("hub", "list", hub) == {"names": ["tuned"]}
    report = ddct("pull", hub, "tuned", tmp_path / "out", "--base", model_pair[0])
    assert report["applied"] == report["tensors"] == 4
    files = hf_lfs.repository("acme/commands")["files"]
    assert sorted(files) == [".gitattributes", "README.md", "tuned/ddct.json", "tuned/model.ddct"]


def test_pulling_a_name_that_is_not_there(hub: Hub, model_pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(HubError, match="nothing is published"):
        pull(hub, "nobody", model_pair[0], tmp_path / "out")


def test_pulling_does_not_overwrite(hub: Hub, archive: Path, model_pair: tuple[Path, Path], tmp_path: Path) -> None:
    push(hub, "tuned", archive)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        pull(hub, "tuned", model_pair[0], tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_pulling_with_the_wrong_base_leaves_nothing(
    hub: Hub, archive: Path, model_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    push(hub, "tuned", archive)
    with pytest.raises(BaseMismatchError):
        pull(hub, "tuned", model_pair[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_pointer_that_lies_about_its_archive_is_refused(
    hub: Hub, archive: Path, model_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    push(hub, "tuned", archive)
    path = tmp_path / "hub" / "refs" / "tuned.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_id": "0" * 64}))
    with pytest.raises(HubError, match="does not describe"):
        pull(hub, "tuned", model_pair[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_published_file_that_is_no_sound_archive_is_named_by_hub_and_name(
    hub: Hub, archive: Path, make_object: MakeObject, model_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The digest in the pointer is right: the publisher itself had a damaged file."""
    damaged = bytearray(archive.read_bytes())
    damaged[100] ^= 1
    thing = make_object(bytes(damaged))
    hub.put_archive("tuned", thing.pointer(), thing.path)
    with pytest.raises(CorruptError) as caught:
        pull(hub, "tuned", model_pair[0], tmp_path / "out")
    assert caught.value.place == f"{hub.location}: tuned"
    assert not list(tmp_path.glob(".*"))
