"""The directory hub: its layout, what strangers may have left in it, and writers that die."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_objects import MakeObject

from ddct_format.errors import HubError
from ddct_format.hub import DirectoryHub, Pointer, open_hub
from ddct_format.hub.fetch import fetch_archive
from ddct_format.hub.pointer import serialise_pointer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def test_the_layout_is_objects_by_digest_and_refs_by_name(root: Path, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    hub = DirectoryHub(root)
    hub.put_archive("run/checkpoint-10", thing.pointer(), thing.path)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert files == [f"objects/{thing.sha256[:2]}/{thing.sha256}.ddct", "refs/run/checkpoint-10.json"]
    assert json.loads((root / files[1]).read_bytes())["sha256"] == thing.sha256


def test_published_files_obey_the_umask(root: Path, make_object: MakeObject) -> None:
    thing = make_object(b"archive")
    DirectoryHub(root).put_archive("run", thing.pointer(), thing.path)
    mask = os.umask(0)
    os.umask(mask)
    path = next(root.glob("objects/*/*"))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_locations_are_paths_or_file_urls(root: Path, tmp_path: Path) -> None:
    assert open_hub(str(root)).location == open_hub(root.as_uri()).location == str(root)
    spaced = tmp_path / "with space"
    spaced.mkdir()
    assert open_hub(spaced.as_uri()).location == str(spaced)


@pytest.mark.parametrize("location", ["ftp://example.org/x", "https://example.org/x", "hf+x://user/model"])
def test_other_kinds_of_hub_are_refused(location: str) -> None:
    with pytest.raises(HubError, match="no hubs of the kind"):
        open_hub(location)


@pytest.mark.parametrize("location", ["file://server/share", "file:///x?y", "file:///x#y", "file://relative"])
def test_a_file_url_is_of_this_machine(location: str) -> None:
    with pytest.raises(HubError):
        open_hub(location)


def test_a_hub_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="does not exist"):
        open_hub(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_damaged_object_is_not_accepted_and_can_be_put_again(
    root: Path, make_object: MakeObject, tmp_path: Path
) -> None:
    thing = make_object(b"archive")
    hub = DirectoryHub(root)
    hub.put_archive("run", thing.pointer(), thing.path)
    stored = next(root.glob("objects/*/*"))
    stored.write_bytes(b"ARCHIVE")
    with pytest.raises(HubError, match="sha256"):
        fetch_archive(hub, "run", thing.pointer(), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    stored.write_bytes(b"arch")
    assert not hub.has_archive("run", thing.pointer())
    hub.put_archive("run", thing.pointer(), thing.path)
    assert stored.read_bytes() == b"archive"


def test_an_endless_object_is_read_no_further_than_promised(
    root: Path, make_object: MakeObject, tmp_path: Path
) -> None:
    thing = make_object(b"archive")
    hub = DirectoryHub(root)
    hub.put_archive("run", thing.pointer(), thing.path)
    stored = next(root.glob("objects/*/*"))
    with stored.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(HubError):
        fetch_archive(hub, "run", thing.pointer(), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_what_is_no_regular_file_is_refused_without_waiting(root: Path, kind: str) -> None:
    object_path = root / "objects" / "00" / f"{'0' * 64}.ddct"
    pointer_path = root / "refs" / "run.json"
    for path in (object_path, pointer_path):
        path.parent.mkdir(parents=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
    hub = DirectoryHub(root)
    pointer = Pointer("0" * 64, 5, *("1" * 64,) * 3)
    assert not hub.has_archive("run", pointer)
    with pytest.raises(HubError):
        list(hub.read_archive("run", pointer, 0))
    with pytest.raises(HubError):
        hub.get_pointer("run")
    assert hub.list_names() == ()


def test_a_hostile_pointer_is_an_error_that_names_the_file(root: Path) -> None:
    (root / "refs").mkdir()
    (root / "refs" / "run.json").write_text('{"version": 1, "sha256": "../../etc/passwd"}')
    with pytest.raises(HubError, match=r"run\.json"):
        DirectoryHub(root).get_pointer("run")


def test_strangers_in_refs_are_not_names(root: Path) -> None:
    (root / "refs" / ".git").mkdir(parents=True)
    for path in ("run.txt", "a b.json", ".git/x.json", "x.json.json", "..json"):
        (root / "refs" / path).write_text("{}")
    assert DirectoryHub(root).list_names() == ()


def test_leftovers_are_removed_but_not_the_files_of_living_writers(root: Path) -> None:
    incoming = root / "incoming"
    incoming.mkdir()
    (incoming / "dead").write_bytes(b"half")
    with (incoming / "alive").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert DirectoryHub(root).remove_leftovers() == 1
        assert [path.name for path in incoming.iterdir()] == ["alive"]


WRITER = """
import sys
from pathlib import Path
from ddct_format.hub import DirectoryHub
from ddct_format.hub.pointer import parse_pointer
hub, pointer = DirectoryHub(Path(sys.argv[1])), parse_pointer(sys.argv[2].encode())
print("ready", flush=True)
hub.put_archive("run", pointer, Path(sys.argv[3]))
"""


def test_a_writer_killed_at_any_moment_leaves_no_object_or_a_whole_one(
    root: Path, make_object: MakeObject, tmp_path: Path
) -> None:
    thing = make_object(os.urandom(1 << 20) * 24)
    hub, pointer = DirectoryHub(root), serialise_pointer(thing.pointer()).decode()
    for attempt in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), pointer, str(thing.path)],
            stdout=subprocess.PIPE,
        )
        with writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(attempt * 0.012)
            writer.send_signal(signal.SIGKILL)
        stored = list(root.glob("objects/*/*"))
        assert [path.read_bytes() == thing.path.read_bytes() for path in stored] in ([], [True])
        hub.remove_leftovers()
        assert not list((root / "incoming").glob("*"))
        for path in stored:
            path.unlink()
    hub.put_archive("run", thing.pointer(), thing.path)
    fetch_archive(hub, "run", thing.pointer(), tmp_path / "fetched")


def test_what_cannot_be_removed_among_leftovers_stands_in_nobodys_way(root: Path) -> None:
    (root / "incoming" / "no-file").mkdir(parents=True)
    os.mkfifo(root / "incoming" / "pipe")
    (root / "incoming" / "stale").write_bytes(b"half")
    assert DirectoryHub(root).remove_leftovers() == 1
    assert sorted(path.name for path in (root / "incoming").iterdir()) == ["no-file", "pipe"]


def test_a_damaged_object_of_the_right_size_is_replaced_when_it_is_published_again(
    root: Path, make_object: MakeObject
) -> None:
    thing, hub = make_object(b"archive"), DirectoryHub(root)
    hub.put_archive("one", thing.pointer(), thing.path)
    (path,) = (root / "objects").glob("*/*")
    path.write_bytes(b"ARCHIVE")
    hub.put_archive("two", thing.pointer(), thing.path)
    assert b"".join(hub.read_archive("two", thing.pointer(), 0)) == b"archive"
