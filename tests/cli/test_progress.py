"""What long work tells people meanwhile: one line redrawn on a terminal, plain lines elsewhere, nothing with --json."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

SCRIPT = """
import sys, time
from ddct_format.cli import output
output._LINE_EVERY_SECONDS = 0.5  # of an hour's work, it would be many
show = output.show_progress(as_json="--json" in sys.argv)
for done in range(0, 4001, 100):
    if show is not None:
        show(done * 10**6, 4 * 10**9, "packing")
    time.sleep(0.04)
"""


def on_a_terminal(*arguments: str) -> str:
    """All that appears on a terminal that is the standard error stream."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # how Linux tells that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def test_a_terminal_has_one_line_with_share_rate_and_time_left() -> None:
    shown = on_a_terminal()
    assert shown.count("\r\x1b[K") > 5
    assert shown.count("\n") == 1 and shown.endswith("\n")
    assert re.search(r"packing: \d\d % of 4\.00 GB, \d+\.\d\d [GM]B/s, \d s left", shown)
    assert re.search(r"packing: 100 % of 4\.00 GB, \d+\.\d\d [GM]B/s\r?\n$", shown)


def test_elsewhere_there_are_a_few_plain_lines() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert 2 <= len(lines) <= 6
    assert all(re.match(r"packing: \d+ % of 4\.00 GB", line) for line in lines)
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    assert not done.stdout


def test_with_json_there_is_none() -> None:
    assert on_a_terminal("--json") == ""
