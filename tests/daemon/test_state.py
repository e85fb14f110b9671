"""The journal and the state directory: durable rows, one daemon, no orphans."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ddct_daemon.state import Entry, Journal, Stage
from ddct_daemon.state_directory import StateDirectory, lock_holder
from ddct_format.errors import ConfigError, StorageError

ENTRY = Entry(
    "run/checkpoint-1",
    Stage.FAILED,
    "no space",
    "fingerprint",
    resumable=True,
    attempts=3,
    retry_at=1.5,
    updated_at=2.5,
    archive="a/b",
    sha256="1" * 64,
    size=2**40,
    error=None,
)


def test_an_entry_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal.load() == {}
        journal.save(ENTRY)
    with Journal(tmp_path / "j") as journal:
        (loaded,) = journal.load().values()
    assert loaded == ENTRY
    assert (type(loaded.stage), type(loaded.resumable)) == (Stage, bool)


def test_a_reason_may_name_files_whose_names_are_not_utf8(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.save(replace(ENTRY, reason="r\udcff is missing", left_out="\udc80"))
        assert journal.load()[ENTRY.name] == replace(ENTRY, reason="r\\udcff is missing", left_out="\\udc80")


def test_saving_again_replaces(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.save(ENTRY)
        journal.save(Entry(ENTRY.name, Stage.PUBLISHED, "done", "f"))
        assert [entry.stage for entry in journal.load().values()] == [Stage.PUBLISHED]


def test_a_reader_looks_on_while_the_daemon_writes(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal, Journal(tmp_path / "j", read_only=True) as reader:
        journal.save(ENTRY)
        assert list(reader.load()) == [ENTRY.name]
        with pytest.raises(StorageError):
            reader.save(ENTRY)


def test_a_reader_of_a_journal_that_is_just_being_made_sees_nothing(tmp_path: Path) -> None:
    (tmp_path / "j").touch()
    with Journal(tmp_path / "j", read_only=True) as reader:
        assert reader.load() == {}


def test_a_damaged_journal_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="journal"):
        Journal(tmp_path / "j")


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "j")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="another version"):
        Journal(tmp_path / "j")


def test_saved_rows_survive_kill_9(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from ddct_daemon.state import *\n"
        "j = Journal(Path(sys.argv[1])); j.save(Entry('a', Stage.SEEN, 'r', 'f'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "j")]).returncode == -9
    with Journal(tmp_path / "j") as journal:
        assert list(journal.load()) == ["a"]


def test_two_processes_cannot_have_one_state(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from ddct_daemon.state_directory import *\n" + (
        "state = StateDirectory(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "state")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        assert lock_holder(tmp_path / "state") == other.pid
        with pytest.raises(ConfigError, match=f"another daemon \\(process {other.pid}\\)"):
            StateDirectory(tmp_path / "state")
        other.kill()
    assert lock_holder(tmp_path / "state") is None
    with StateDirectory(tmp_path / "state"):
        assert lock_holder(tmp_path / "state") is not None


def test_a_state_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        StateDirectory(tmp_path / "file" / "state")


def test_orphans_are_removed_and_archives_that_are_needed_are_kept(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        kept, orphan = state.new_archive(), state.new_archive()
        for archive in (kept, orphan):
            state.archive(archive).write_bytes(b"x")
            state.archive(archive).with_name("spool.tmp").write_bytes(b"x")
        (tmp_path / "spool" / "stray").write_bytes(b"x")
        assert state.remove_orphans([kept]) == 2
        assert state.archive(kept).exists()
        assert len(list((tmp_path / "spool").iterdir())) == 1
        state.remove_archive(kept)
        state.remove_archive(kept)
        assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("relative", ["", "../journal.sqlite3", "../../x/y", "/etc/passwd"])
def test_only_the_spool_is_ever_removed(tmp_path: Path, relative: str) -> None:
    with StateDirectory(tmp_path / "state") as state:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "y").touch()
        state.remove_archive(relative)
    assert (tmp_path / "x" / "y").exists()
    assert (tmp_path / "state" / "spool").exists()
