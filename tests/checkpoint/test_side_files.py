"""What an archive carries beside the tensors, and what it leaves out."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ddct_format.checkpoint import open_checkpoint
from ddct_format.errors import CheckpointError, StorageError


@pytest.fixture
def model(tmp_path: Path, make_file: Callable[..., Path]) -> Path:
    root = tmp_path / "model"
    make_file(root / "model.safetensors", "a")
    return root


def add(root: Path, path: str, data: bytes = b"x") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def test_everything_that_is_no_weight_is_carried(model: Path) -> None:
    paths = [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "modeling.py",
        "onnx/notes.txt",
        "tokenizer.model",
    ]
    for path in paths:
        add(model, path, path.encode())
    with open_checkpoint(model) as checkpoint:
        assert [(file.path, file.size) for file in checkpoint.side_files()] == [(p, len(p)) for p in paths]
        assert [checkpoint.read_side_file(path) for path in paths] == [path.encode() for path in paths]
        assert checkpoint.skipped == ()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("optimizer.pt", "optimizer"),
        ("rng_state.pth", "optimizer"),
        ("training_args.bin", "optimizer"),
        ("global_step10/mp_rank_00_model_states.pt", "optimizer"),
        ("2_Dense/model.safetensors", "not part of the model"),
        ("onnx/model.onnx", "not part of the model"),
        ("model-q4.gguf", "not part of the model"),
        (".gitattributes", "hidden"),
        ("assets/.DS_Store", "hidden"),
        ("runs/events.out.tfevents.1700000000.machine.1", "log"),
        ("a:b.txt", "colon"),
        ("a\\b.txt", "backslash"),
        ("a\nb.txt", "control character"),
        ("ends./x.txt", "full stop"),
        ("ends ", "space"),
    ],
)
def test_what_is_left_out_is_reported_with_its_reason(model: Path, path: str, reason: str) -> None:
    add(model, path)
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.side_files() == ()
        (skipped,) = checkpoint.skipped
        assert skipped.path == path
        assert reason in skipped.reason


@pytest.mark.parametrize("directory", [".git", ".cache", "checkpoint-500", "checkpoint-last"])
def test_hidden_directories_and_checkpoints_are_left_out_as_a_whole(model: Path, directory: str) -> None:
    add(model, f"{directory}/config.json")
    add(model, f"{directory}/deep/er.json")
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.side_files() == ()
        assert [skipped.path for skipped in checkpoint.skipped] == [f"{directory}/"]


def test_a_name_that_is_not_utf8_is_left_out(model: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(model) + b"/caf\xe9.txt")).write_text("")
    except OSError:
        pytest.skip("this file system has no names that are not UTF-8")
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.side_files() == ()
        assert checkpoint.skipped[0].path == "caf\\xe9.txt"


def test_a_large_file_is_left_out(model: Path) -> None:
    for size in (64 << 20, (64 << 20) + 1):
        add(model, f"{size}.json", b"")
        os.truncate(model / f"{size}.json", size)
    with open_checkpoint(model) as checkpoint:
        assert [file.size for file in checkpoint.side_files()] == [64 << 20]
        assert checkpoint.skipped[0].reason == "larger than 64 MiB"


def test_links_to_files_are_carried_and_links_to_directories_are_not(model: Path, tmp_path: Path) -> None:
    add(tmp_path, "elsewhere/config.json", b"{}")
    (model / "config.json").symlink_to("../elsewhere/config.json")
    (model / "linked").symlink_to("../elsewhere")
    (model / "itself").symlink_to(".")
    (model / "dangling.json").symlink_to("absent")
    with open_checkpoint(model) as checkpoint:
        assert [file.path for file in checkpoint.side_files()] == ["config.json"]
        assert checkpoint.read_side_file("config.json") == b"{}"
        reasons = {skipped.path: skipped.reason for skipped in checkpoint.skipped}
        assert reasons["linked"] == reasons["itself"] == "a link to a directory"
        assert "No such file" in reasons["dangling.json"]


def test_pipes_are_left_out(model: Path) -> None:
    os.mkfifo(model / "pipe.json")
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.side_files() == ()
        assert checkpoint.skipped[0].reason == "not a regular file"


def test_of_two_paths_that_differ_only_in_case_one_is_carried(model: Path) -> None:
    add(model, "README.md")
    add(model, "readme.md")
    if len(list(model.iterdir())) < 3:
        pytest.skip("this file system ignores case")
    with open_checkpoint(model) as checkpoint:
        assert [file.path for file in checkpoint.side_files()] == ["README.md"]
        assert "case" in checkpoint.skipped[0].reason


def test_of_a_file_and_a_directory_that_differ_only_in_case_one_is_carried(model: Path) -> None:
    add(model, "Data")
    try:
        add(model, "data/x.txt")
    except OSError:
        pytest.skip("this file system ignores case")
    with open_checkpoint(model) as checkpoint:
        assert len(checkpoint.side_files()) == len(checkpoint.skipped) == 1
        assert "case" in checkpoint.skipped[0].reason


def test_only_listed_files_can_be_read(model: Path) -> None:
    add(model.parent, "secret.txt")
    add(model, "optimizer.pt")
    with open_checkpoint(model) as checkpoint:
        for path in ("../secret.txt", "optimizer.pt", "model.safetensors", "absent.json", ""):
            with pytest.raises(CheckpointError, match="not a side file"):
                checkpoint.read_side_file(path)


def test_a_file_that_became_a_pipe_does_not_block(model: Path) -> None:
    add(model, "config.json")
    with open_checkpoint(model) as checkpoint:
        checkpoint.side_files()
        (model / "config.json").unlink()
        os.mkfifo(model / "config.json")
        with pytest.raises(CheckpointError, match="not a regular file"):
            checkpoint.read_side_file("config.json")


def test_a_side_file_that_may_not_be_read_is_a_storage_error(
    model: Path, unprivileged: Callable[[Path], AbstractContextManager[None]]
) -> None:
    add(model, "config.json")
    (model / "config.json").chmod(0)
    with unprivileged(model), open_checkpoint(".") as checkpoint:
        assert [file.path for file in checkpoint.side_files()] == ["config.json"]
        with pytest.raises(StorageError, match="Permission denied"):
            checkpoint.read_side_file("config.json")


def test_more_files_than_an_archive_can_carry_are_refused(model: Path) -> None:
    for number in range(4097):
        (model / f"{number}.txt").touch()
    with open_checkpoint(model) as checkpoint, pytest.raises(CheckpointError, match="4096"):
        checkpoint.side_files()
