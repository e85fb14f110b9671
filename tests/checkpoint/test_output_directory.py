"""An output directory appears complete under its name, or not at all."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ddct_format.checkpoint import OutputDirectory, SafetensorsFile, owner_of_temporary
from ddct_format.errors import CheckpointError, OutputExistsError, StorageError

StartPython = Callable[..., subprocess.Popen[str]]

ONE = [("a", "U8", (3,))]

WRITE_STEP_BY_STEP = """
import sys
from ddct_format.checkpoint import OutputDirectory
print("ready", flush=True)
with OutputDirectory(sys.argv[1]) as output:
    tensors = [(str(n), "U8", (1 << 16,)) for n in range(8)]
    writer = output.shard_writer("model.safetensors", tensors, {})
    for name, _, _ in tensors:
        print("step", flush=True)
        sys.stdin.readline()
        writer.write(name, bytes(1 << 16))
    output.write_file("config.json", b"{}")
    print("last", flush=True)
    sys.stdin.readline()
    output.commit()
"""


def test_a_committed_directory_holds_what_was_written(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path / "out") as output:
        with output.shard_writer("model.safetensors", ONE, {"format": "pt"}) as writer:
            writer.write("a", b"abc")
        output.write_file("config.json", b"{}")
        output.write_file("empty.txt", b"")
        output.write_file("deep/er/file.txt", bytearray(b"x"))
        assert not (tmp_path / "out").exists()
        output.commit()
    with SafetensorsFile(tmp_path / "out" / "model.safetensors") as file:
        assert bytes(file.read("a")) == b"abc"
    assert (tmp_path / "out" / "config.json").read_bytes() == b"{}"
    assert (tmp_path / "out" / "empty.txt").read_bytes() == b""
    assert (tmp_path / "out" / "deep" / "er" / "file.txt").read_bytes() == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_commit_closes_shards_that_are_still_open(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path / "out") as output:
        output.shard_writer("model.safetensors", ONE, {}).write("a", b"abc")
        output.commit()
    SafetensorsFile(tmp_path / "out" / "model.safetensors").close()


def test_without_commit_nothing_remains(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path / "out") as output:
        output.write_file("config.json", b"{}")
        output.shard_writer("model.safetensors", ONE, {})
    assert list(tmp_path.iterdir()) == []


def test_after_an_exception_nothing_remains(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputDirectory(tmp_path / "out") as output:
        output.shard_writer("model.safetensors", ONE, {})
        output.write_file("config.json", b"{}")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_was_not_written_prevents_the_commit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a'"), OutputDirectory(tmp_path / "out") as output:
        output.shard_writer("model.safetensors", ONE, {})
        output.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_was_given_up_prevents_the_commit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="discarded"), OutputDirectory(tmp_path / "out") as output:
        with pytest.raises(KeyError), output.shard_writer("model.safetensors", ONE, {}) as writer:
            writer.write("a", b"abc")
            raise KeyError
        output.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "link", "dangling link"])
def test_whatever_exists_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "directory":
        out.mkdir()
        (out / "mine").touch()
    elif kind == "empty directory":
        out.mkdir()
    else:
        out.symlink_to("." if kind == "link" else "absent")
    before = out.lstat()
    with pytest.raises(OutputExistsError) as caught, OutputDirectory(out):
        pass
    assert caught.value.place == str(out)
    assert out.lstat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "dangling link"])
def test_what_came_into_being_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exclusive: bool
) -> None:
    """Also with a C library that has no exclusive rename."""
    if not exclusive:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    out = tmp_path / "out"
    with pytest.raises(OutputExistsError), OutputDirectory(out) as output:
        output.write_file("config.json", b"{}")
        if kind == "file":
            out.write_text("mine")
        elif kind == "dangling link":
            out.symlink_to("absent")
        else:
            out.mkdir()
        if kind == "directory":
            (out / "mine").touch()
        before = out.lstat()
        output.commit()
    assert out.lstat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_c_library_without_exclusive_rename_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with OutputDirectory(tmp_path / "out") as output:
        output.write_file("config.json", b"{}")
        output.commit()
    assert (tmp_path / "out" / "config.json").exists()


def test_of_many_that_write_the_same_directory_one_wins(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    outcomes: list[int | None] = []

    def write(number: int) -> None:
        try:
            with OutputDirectory(tmp_path / "out") as output:
                output.write_file("number", str(number).encode())
                barrier.wait(30)
                output.commit()
        except OutputExistsError:
            outcomes.append(None)
        else:
            outcomes.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if outcome is not None]
    assert len(outcomes) == 8
    assert (tmp_path / "out" / "number").read_text() == str(winner)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\\b", "", ".", "a/./b", "a:b", "x."])
def test_paths_that_lead_out_of_the_directory_are_refused(tmp_path: Path, path: str) -> None:
    with OutputDirectory(tmp_path / "out") as output:
        with pytest.raises(CheckpointError):
            output.write_file(path, b"x")
        with pytest.raises(CheckpointError):
            output.shard_writer(path, ONE, {})
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_taken_is_refused(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path / "out") as output:
        output.write_file("a", b"1")
        for path in ("a", "a/b"):
            with pytest.raises(StorageError):
                output.write_file(path, b"2")
        output.commit()
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


def test_a_parent_that_does_not_exist_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError), OutputDirectory(tmp_path / "absent" / "out"):
        pass


def test_a_parent_that_may_not_be_written_is_a_storage_error(
    tmp_path: Path, unprivileged: Callable[[Path], AbstractContextManager[None]]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    with unprivileged(closed), pytest.raises(StorageError, match="Permission denied"), OutputDirectory("out"):
        pass


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_are_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with OutputDirectory(tmp_path / "out") as output:
            output.shard_writer("model.safetensors", [], {})
            output.write_file("deep/config.json", b"{}")
            output.commit()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == modes["deep"] == 0o777 & ~umask
    assert modes["model.safetensors"] == modes["config.json"] == 0o666 & ~umask


@pytest.mark.parametrize("steps", range(1, 10))
def test_a_process_killed_in_the_middle_leaves_nothing_under_the_name(
    tmp_path: Path, start_python: StartPython, steps: int
) -> None:
    process = start_python(WRITE_STEP_BY_STEP, tmp_path / "out")
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    for step in range(steps):
        assert process.stdout.readline() in ("step\n", "last\n")
        if step < steps - 1:
            process.stdin.write("\n")
            process.stdin.flush()
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert owner_of_temporary(left.name) == process.pid


def test_a_process_killed_while_it_commits_leaves_all_or_nothing(tmp_path: Path, start_python: StartPython) -> None:
    for attempt in range(8):
        out = tmp_path / str(attempt)
        process = start_python(WRITE_STEP_BY_STEP, out)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n" * 9)
        process.stdin.flush()
        while process.stdout.readline() != "last\n":
            pass
        # Spread over the few milliseconds that a commit takes.
        deadline = time.monotonic() + attempt * 0.0005
        while time.monotonic() < deadline:
            pass
        process.kill()
        process.wait(30)
        if out.exists():
            assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
            SafetensorsFile(out / "model.safetensors").close()
    others = [path.name for path in tmp_path.iterdir() if not path.name.isdigit()]
    assert all(owner_of_temporary(name) is not None for name in others)


@pytest.mark.parametrize("what", ["shard", "tensor", "file"])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    tmp_path: Path, start_python: StartPython, what: str
) -> None:
    """The limit on file sizes stands in for the disk: a write across it is cut short, then refused."""
    script = f"""
import resource, sys
from ddct_format.checkpoint import OutputDirectory
from ddct_format.errors import StorageError
def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    with OutputDirectory(sys.argv[1]) as output:
        if {what!r} == "shard":
            fill()
        if {what!r} == "file":
            fill()
            output.write_file("big.json", bytes(1 << 20))
        writer = output.shard_writer("model.safetensors", [("a", "U8", (1 << 20,))], {{}})
        fill()
        writer.write("a", bytes(1 << 20))
        output.commit()
except StorageError as error:
    print(error.reason)
"""
    process = start_python(script, tmp_path / "out")
    assert process.communicate(timeout=60)[0] == "File too large\n"
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_too_many_open_files_are_a_storage_error(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        pytest.raises(StorageError, match="Too many open files"),
        OutputDirectory(tmp_path / "out") as output,
    ):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (50, hard))
            for number in range(50):
                output.shard_writer(f"{number}.safetensors", [], {})
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", ".ddct-1-0123456789abcdef", ".ddct-0-0123456789abcdef.tmp", ".ddct-x-0.tmp"])
def test_other_names_are_not_taken_for_temporary_directories(name: str) -> None:
    assert owner_of_temporary(name) is None
