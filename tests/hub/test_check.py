"""`ddct hub check`: hubs that keep their promises, and hubs that do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_servers import MiniHub

from ddct_format.hub import DirectoryHub, Pointer, check_hub


class ForgetfulHub(DirectoryHub):
    def list_names(self) -> tuple[str, ...]:
        return ()


class ShortHub(DirectoryHub):
    def read_archive(self, name: str, pointer: Pointer, begin: int, end: int | None = None) -> Iterator[bytes]:
        yield b"".join(super().read_archive(name, pointer, begin, end))[:-1]


@pytest.mark.parametrize(("kind", "problem"), [(ForgetfulHub, "not in the list"), (ShortHub, "sha256|ends early")])
def test_a_promise_that_is_not_kept_is_named_and_nothing_is_left(
    tmp_path: Path, kind: type[DirectoryHub], problem: str
) -> None:
    steps = list(check_hub(kind(tmp_path)))
    failed = [step for step in steps if step.problem is not None]
    assert len(failed) == 1
    assert any(part in str(failed[0].problem) for part in problem.split("|"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def ddct(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ddct_format", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
    )


def test_the_command_checks_a_real_endpoint(hf_lfs: MiniHub, s3: str, tmp_path: Path) -> None:
    hf = ["hf://acme/checked", "--endpoint", hf_lfs.url, "--token-file", hf_lfs.token_file]
    for where in (hf, ["s3://bucket/checked", "--endpoint", s3], [tmp_path]):
        done = ddct("hub", "check", *where, "--json")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["steps"]) == 9
    assert list(hf_lfs.repository("acme/checked")["files"]) == [".gitattributes", "README.md"]


def test_the_command_fails_with_the_status_of_hubs(tmp_path: Path) -> None:
    done = ddct("hub", "check", "hf://acme/x", "--endpoint", "http://127.0.0.1:9", HF_TOKEN="hf_secret")
    assert done.returncode == 11
    assert "FAIL" in done.stdout
    assert "hf_secret" not in done.stdout + done.stderr
