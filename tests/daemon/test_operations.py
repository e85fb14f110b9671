"""What operators do with a running daemon: submit, pause, drain, look at it, let systemd watch it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_models import tuned_tensors, write_model
from daemon_world import DdctCommand, World

from ddct_daemon.control import ask_daemon
from ddct_daemon.page import render_page
from ddct_daemon.state import Journal
from ddct_format.errors import ConfigError

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(world: World, ddct: DdctCommand) -> Command:
    """`command("pause")`: `ddct daemon pause --config ...`."""
    return lambda name, *arguments: ddct("daemon", name, "--config", world.config, *arguments)


def test_a_submitted_checkpoint_needs_no_end_marker_and_no_wait(world: World, command: Command) -> None:
    world.config.write_text(
        world.config.read_text().replace("plain_settle_seconds = 0.6", "plain_settle_seconds = 3600")
    )
    write_model(world.runs / "final", tuned_tensors(1))
    world.start()
    world.wait_for_stage("final", "seen")
    assert json.loads(command("submit", world.runs / "final", "--json").stdout)["pending"] == ["final"]
    world.wait_for_stage("final", "published")
    for path, reason in ((world.root, "is not below"), (world.runs / "nothing", "no checkpoint that the daemon sees")):
        refused = command("submit", path)
        assert refused.returncode == 12
        assert reason in refused.stderr
    world.stop()


def test_a_pause_holds_over_a_restart_until_it_is_resumed(world: World, command: Command) -> None:
    world.start()
    world.wait_until_ready()
    assert json.loads(command("pause", "--json").stdout) == {"paused": True, "pending": []}
    world.write("checkpoint-1", 1)
    world.wait_for(lambda: "checkpoint-1" in world.rows(), "a sighting")
    world.stop()
    world.start()
    world.wait_until_ready()
    assert "running" in command("status").stdout.splitlines()[0]
    assert "paused" in command("status").stdout.splitlines()[0]
    assert command("drain", "--timeout", "30").returncode == 12
    assert world.stage("checkpoint-1") == "seen"
    assert json.loads(command("resume", "--json").stdout)["paused"] is False
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_drain_returns_when_all_is_published_and_fails_when_it_is_not_in_time(world: World, command: Command) -> None:
    world.configure(rescan=3600)
    world.start()
    world.wait_until_ready()
    world.write("checkpoint-1", 1)
    (world.runs / "checkpoint-2").mkdir()  # half a checkpoint is not waited for
    (world.runs / "checkpoint-2" / "config.json").touch()
    assert command("drain", "--timeout", "60").returncode == 0
    assert world.stage("checkpoint-1") == "published"
    world.hub.rename(world.root / "unplugged")
    world.write("checkpoint-3", 3)
    late = command("drain", "--timeout", "3", "--json")
    assert late.returncode == 14
    assert json.loads(late.stdout)["error"]["code"] == "not-drained"
    assert "checkpoint-3" in late.stderr
    world.stop()


def test_a_client_that_asks_byte_by_byte_does_not_hold_up_the_daemon(world: World, command: Command) -> None:
    world.start()
    world.wait_until_ready()
    path = world.state / "control.sock"
    world.wait_for(path.exists, "a socket")
    ended = threading.Event()

    def drip() -> None:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(os.path.relpath(path))
            while not ended.wait(0.5):
                client.sendall(b" ")

    slow = threading.Thread(target=drip)
    slow.start()
    try:
        world.write("checkpoint-1", 1)
        world.wait_for_stage("checkpoint-1", "published")
    finally:
        ended.set()
        slow.join()
    world.stop()


def test_commands_without_a_daemon_say_so(world: World, command: Command) -> None:
    world.state.mkdir()
    for name in ("pause", "resume", "drain"):
        done = command(name)
        assert done.returncode == 12
        assert "no daemon is running" in done.stderr


def test_the_control_socket_is_private_and_survives_nonsense_and_a_killed_daemon(world: World) -> None:
    daemon = world.start()
    world.wait_until_ready()
    path = world.state / "control.sock"
    world.wait_for(path.exists, "a socket")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for raw in (b"", b"\n", b"[]\n", b"{", b"\xff\n", b'{"command": 5}\n', b"x" * 3_000_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.path.relpath(path))
            try:
                client.sendall(raw)
                client.shutdown(socket.SHUT_WR)
                client.recv(1000)
            except OSError:
                continue
    with pytest.raises(ConfigError, match="no such command"):
        ask_daemon(world.state, {"command": "reboot"})
    daemon.kill()
    daemon.wait()
    with pytest.raises(ConfigError, match="no daemon is running"):
        ask_daemon(world.state, {"command": "status"})
    world.start()
    world.wait_until_ready()
    world.wait_for(lambda: ask_daemon(world.state, {"command": "status"})["pending"] == [], "an answer")
    world.stop()
    assert not path.exists()


def test_systemd_hears_when_the_daemon_is_ready_alive_and_stopping(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        address = os.path.relpath(tmp_path / "notify")
        systemd.bind(address)
        systemd.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        daemon = world.start()
        messages: list[str] = []
        while messages.count("WATCHDOG=1") < 5:
            messages.append(systemd.recv(1000).decode())
        assert f"READY=1\nSTATUS=watching {world.runs}" in messages
        daemon.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in messages:
            messages.append(systemd.recv(1000).decode())
        assert daemon.wait(30) == 0


def test_no_pack_begins_without_free_space(world: World) -> None:
    world.configure(more="reserve_megabytes = 1000000000")
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "failed")
    assert "are to stay free" in world.rows()["checkpoint-1"]["reason"]
    world.stop()
    assert world.leftovers() == []


def test_polling_alone_finds_checkpoints(world: World) -> None:
    world.config.write_text(world.config.read_text().replace("[watch]", "[watch]\nevents = false"))
    world.start()
    world.wait_until_ready()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_the_page_and_the_metrics_show_what_status_shows(world: World, ddct: DdctCommand) -> None:
    world.configure(more='[status]\nport = 0\nmetrics = "ddct.prom"')
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.wait_for(lambda: "status page at" in world.log.read_text(), "the page")
    url = world.log.read_text().split("status page at ")[1].split()[0]
    with urllib.request.urlopen(url, timeout=20) as answer:
        page = answer.read().decode()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "checkpoint-1" in page
    assert "published" in page
    assert "http" not in page.replace("http-equiv", "")
    with urllib.request.urlopen(url + "status.json", timeout=20) as answer:
        assert json.load(answer)["checkpoints"][0]["name"] == "checkpoint-1"
    with urllib.request.urlopen(url + "metrics", timeout=20) as answer:
        assert 'ddct_checkpoints{stage="published"} 1' in answer.read().decode()
    world.wait_for(lambda: 'stage="published"} 1' in (world.root / "ddct.prom").read_text(), "the textfile")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "evil.example"}), timeout=20)
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(urllib.request.Request(url, data=b"x"), timeout=20)
    world.stop()


HOSTILE = "<script>alert(1)</script>"


def row(**changes: object) -> dict[str, object]:
    return {
        "name": HOSTILE,
        "stage": "published",
        "line": HOSTILE,
        "retry_in": None,
        "updated_at": 1e9,
        "original_size": 10_000_000,
        "size": 400_000,
        "error": 0.1,
        **changes,
    }


def test_names_and_reasons_cannot_inject_into_the_page() -> None:
    status = {"daemon": {"running": True, "paused": False}, "hub": HOSTILE, "checkpoints": [row(), row(stage="failed")]}
    assert HOSTILE not in render_page(status)


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str], str]:
    """`browse(url)`: the document as Chromium has it once the page is there."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    quiet = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"
    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
    ]

    def browse(url: str) -> str:
        command = [browser, *arguments, "--enable-logging=stderr", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        # What the page may not load or run, the browser says on its console.
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return browse


def test_the_page_in_a_real_browser(world: World, browse: Callable[[str], str]) -> None:
    world.configure(more="[status]\nport = 0")
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.hub.rename(world.root / "unplugged")
    world.write("checkpoint-2", 2)
    (world.runs / "checkpoint-3").mkdir()
    (world.runs / "checkpoint-3" / "config.json").write_text("{}")
    world.wait_for_stage("checkpoint-2", "failed")
    world.wait_for(lambda: "not finished" in str(world.rows().get("checkpoint-3", {}).get("reason")), "a reason")
    url = world.log.read_text().split("status page at ")[1].split()[0]
    document = browse(url)
    published, failed, unfinished = (world.rows()[f"checkpoint-{step}"] for step in (1, 2, 3))
    rows = re.findall(r"<tr>(.*?)</tr>", document, re.DOTALL)
    cells = [re.sub("<[^>]*>", "|", row).split("|") for row in rows if "checkpoint-" in row]
    by_name = {next(filter(None, row)): [cell.strip() for cell in row if cell.strip()] for row in cells}
    assert by_name["checkpoint-1"][1:5] == [
        "published",
        "0.04 MB",
        f"{published['size'] / 1e6:.2f} MB",
        f"{published['error']:.4f}",
    ]
    assert by_name["checkpoint-2"][1] == "failed"
    assert re.fullmatch(r"in \d+ s", by_name["checkpoint-2"][5])
    assert failed["reason"] in by_name["checkpoint-2"][-1]
    assert unfinished["reason"] in by_name["checkpoint-3"][-1]
    assert document.count("<rect") == 2 * 2
    assert "Size before packing" in document
    world.stop()


@pytest.mark.parametrize(
    ("version", "later"),
    [
        (1, ["submitted", "base", "verified_at", "removed_at", "left_out", "link", "links", "decoded"]),
        (2, ["left_out", "link", "links", "decoded"]),
    ],
)
def test_a_journal_of_an_earlier_version_is_taken_over(world: World, version: int, later: list[str]) -> None:
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    program = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    for column in sys.argv[3:]:
        database.execute(f"ALTER TABLE checkpoints DROP COLUMN {column}")
    database.execute(f"PRAGMA user_version = {sys.argv[2]}")
database.close()
"""
    path = world.state / "journal.sqlite3"
    subprocess.run([sys.executable, "-c", program, path, str(version), *later], check=True)
    with Journal(path) as journal:
        assert journal.load()["checkpoint-1"].stage == "published"
