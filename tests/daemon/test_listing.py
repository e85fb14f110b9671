"""Which directories are candidates, and when two listings are the same."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fake_trainer import write_checkpoint

from ddct_daemon.listing import Kind, Listing, list_checkpoint, list_checkpoints


def names(root: Path) -> list[tuple[str, Kind]]:
    return [(listing.name, listing.kind) for listing in list_checkpoints(root)]


def listed(root: Path, name: str = "checkpoint-1") -> Listing:
    listing = list_checkpoint(root, name)
    assert listing is not None
    return listing


def touch(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_root_that_is_not_there_has_no_candidates(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "runs") == []


def test_candidates_are_checkpoints_and_model_directories_in_the_root_and_in_its_runs(tmp_path: Path) -> None:
    for path in (
        "checkpoint-10/anything",
        "final/model.safetensors",
        "run-a/checkpoint-5/config.json",
        "run-a/merged/model.safetensors.index.json",
        "run-a/logs/events",
        "tmp-checkpoint-11/model.bin",
        "checkpoint-best/notes.txt",
        ".cache/checkpoint-1/x",
        "a/b/c/model.safetensors",
    ):
        touch(tmp_path / path)
    assert names(tmp_path) == [
        ("checkpoint-10", Kind.TRAINER),
        ("final", Kind.PLAIN),
        ("run-a/checkpoint-5", Kind.TRAINER),
        ("run-a/merged", Kind.PLAIN),
    ]


def test_the_root_itself_can_be_a_model_and_its_checkpoints_are_not_part_of_it(tmp_path: Path) -> None:
    touch(tmp_path / "model.safetensors")
    touch(tmp_path / "checkpoint-1" / "model.safetensors")
    root, checkpoint = list_checkpoints(tmp_path)
    assert (root.name, root.kind, [file.path for file in root.files]) == (".", Kind.PLAIN, ["model.safetensors"])
    assert (checkpoint.name, checkpoint.step) == ("checkpoint-1", 1)


def test_a_link_beside_its_target_is_no_second_candidate_but_one_to_elsewhere_is(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "runs", tmp_path / "scratch" / "checkpoint-7"
    touch(root / "checkpoint-3" / "model.safetensors")
    touch(elsewhere / "model.safetensors")
    (root / "latest").symlink_to("checkpoint-3")
    (root / "checkpoint-7").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    (root / "broken").symlink_to("nowhere")
    assert names(root) == [("checkpoint-3", Kind.TRAINER), ("checkpoint-7", Kind.TRAINER)]


@pytest.mark.parametrize("change", ["size", "time", "inode", "added", "removed", "directory", "marker"])
def test_every_change_changes_the_fingerprint(tmp_path: Path, change: str) -> None:
    directory = tmp_path / "checkpoint-1"
    write_checkpoint(directory, 1, 0)
    before = listed(tmp_path)
    assert before.fingerprint == listed(tmp_path).fingerprint
    config = directory / "config.json"
    status = config.stat()
    if change == "size":
        config.write_bytes(config.read_bytes() + b" ")
        os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "inode":
        (directory / "copy").write_bytes(config.read_bytes())
        (directory / "copy").rename(config)
        os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "added":
        touch(directory / "sub" / "new.txt")
    elif change == "removed":
        config.unlink()
    elif change == "directory":
        (directory / "empty").mkdir()
    else:
        touch(tmp_path / "checkpoint-1-unfinished")
    assert before.fingerprint != listed(tmp_path).fingerprint


def test_deleted_files_are_told_from_changed_ones(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint-1"
    write_checkpoint(directory, 1, 0)
    before = listed(tmp_path)
    (directory / "optimizer.pt").unlink()
    assert before.same_or_removed(listed(tmp_path))
    touch(directory / "optimizer.pt")
    assert not before.same_or_removed(listed(tmp_path))
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert list_checkpoint(tmp_path, "checkpoint-1") is None
    assert before.same_or_removed(None)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_what_has_a_name_that_is_not_utf8_is_left_out_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (b"run", b"r\xff"):
        (tmp_path / os.fsdecode(name) / "checkpoint-1").mkdir(parents=True)
    for _ in range(2):
        assert [listing.name for listing in list_checkpoints(tmp_path)] == ["run/checkpoint-1"]
    assert caplog.text.count("not UTF-8") == 1


def test_a_folder_that_may_be_listed_but_not_entered_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's of mode 0744: the names in it are known, but nothing else, and root may look all the same."""
    for run in ("ours", "theirs"):
        touch(tmp_path / run / "checkpoint-1" / "model.safetensors")
    stat = Path.stat

    def refusing(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.parent.name == "theirs":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", refusing)
    assert [listing.name for listing in list_checkpoints(tmp_path)] == ["ours/checkpoint-1"]
