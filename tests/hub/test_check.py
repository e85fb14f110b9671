"""`ddct hub check`: hubs that keep their promises, and hubs that do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddct_format.hub import DirectoryHub, Hub, HubOptions, Pointer, check_hub, open_hub


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


NOTES = {
    "directory": ["GB are free"],
    "hf_lfs": ["is private", "has no Xet", "tells the digests", "honours ranges", "refuses commits"],
    "hf_xet": ["is private", "go to Xet", "tells the digests", "honours ranges", "refuses commits"],
    "hf_weak": ["is private", "has no Xet", "does not tell the digests", "honours ranges", "takes commits"],
    "hf_tags": ["kept as tags", "has no Xet", "tells the digests", "honours ranges", "refuses commits"],
    "s3": ["honours conditions", "honours ranges"],
    "s3_weak": ["ignores conditions", "ignores ranges"],
    "s3rver": ["ignores conditions", "honours ranges", "does not list unfinished uploads"],
}


@pytest.mark.parametrize("kind", NOTES)
def test_what_each_kind_of_hub_keeps_and_lacks_is_said(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "directory":
        hub: Hub = DirectoryHub(tmp_path)
    else:
        server = request.getfixturevalue("hf_lfs" if kind == "hf_tags" else kind)
        layout = "tags" if kind == "hf_tags" else None
        if kind.startswith("s3"):
            hub = open_hub("s3://bucket/checked", HubOptions(server))
        else:
            hub = open_hub(f"hf://acme/checked-{kind}", HubOptions(server.url, str(server.token_file), layout=layout))
    steps = list(check_hub(hub))
    assert [step.problem for step in steps] == [None] * 10
    notes = [note for step in steps for note in step.findings]
    assert len(notes) == len(NOTES[kind])
    for note, words in zip(notes, NOTES[kind], strict=True):
        assert words in note
    assert hub.list_names() == ()
    if kind.startswith("hf"):
        assert list(server.repository(f"acme/checked-{kind}")["files"]) == [".gitattributes", "README.md"]


def test_the_command_prints_promises_and_notes(tmp_path: Path) -> None:
    done = ddct("hub", "check", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok  ") == 10
    assert done.stdout.count("note  ") == 1
    steps = json.loads(ddct("hub", "check", tmp_path, "--json").stdout)["steps"]
    assert len(steps) == 10


def test_the_command_fails_with_the_status_of_hubs(tmp_path: Path) -> None:
    done = ddct("hub", "check", "hf://acme/x", "--endpoint", "http://127.0.0.1:9", HF_TOKEN="hf_secret")
    assert done.returncode == 11
    assert "FAIL" in done.stdout
    assert "hf_secret" not in done.stdout + done.stderr
    assert done.stderr.startswith("ddct: error: ") and done.stderr.count("\n") == 1
    told = ddct("hub", "check", "hf://acme/x", "--endpoint", "http://127.0.0.1:9", "--json", HF_TOKEN="hf_secret")
    assert told.returncode == 11
    document = json.loads(told.stdout)  # one object, what was kept until then and the error
    assert document["steps"][-1]["problem"] == document["error"]["reason"]
    assert document["error"]["exit_status"] == 11
