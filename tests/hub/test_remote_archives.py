"""Published archives, read where they are: `ddct inspect`, `verify` and `unpack` by ranges from hf:// and s3://."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_servers import TOKEN, MiniHub

from ddct_format import open_archive, pack
from ddct_format.errors import HubError
from ddct_format.hub import HubOptions, open_hub, push


@pytest.fixture
def archive(tmp_path: Path, model_pair: tuple[Path, Path]) -> Path:
    pack(*model_pair, tmp_path / "tuned.ddct")
    return tmp_path / "tuned.ddct"


ALL = "import json, sys; from ddct_format.cli.main import cli\n" + (
    "for line in json.loads(sys.argv[1]): cli.main(line, standalone_mode=False)"
)


def ddct(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddct_format", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


def assert_readable(where: str, archive: Path, base: Path, out: Path, **environment: str) -> None:
    """What all three commands say of the published archive is what they say of the local one."""
    lines = []
    for location, target in ((where, out / "remote"), (str(archive), out / "local")):
        lines += [
            ["inspect", location, "--tensors", "--json"],
            ["verify", location, "--base", str(base), "--json"],
            ["unpack", location, "--base", str(base), str(target), "--json"],
        ]
    done = subprocess.run(
        [sys.executable, "-c", ALL, json.dumps(lines)], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    for remote, local in zip(answers[:3], answers[3:], strict=True):
        for varies in ("archive", "output", "seconds"):
            remote.pop(varies, None), local.pop(varies, None)
        assert remote == local
    assert answers[1]["decoded"] == answers[2]["applied"] == 4
    assert (out / "remote/model.safetensors").read_bytes() == (out / "local/model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["lfs", "xet"])
def test_a_private_repository(
    kind: str, request: pytest.FixtureRequest, archive: Path, model_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    server: MiniHub = request.getfixturevalue(f"hf_{kind}")
    hub = open_hub("hf://acme/remote", HubOptions(endpoint=server.url, token_file=str(server.token_file)))
    pointer = push(hub, "run/checkpoint-1", archive)
    where = "hf://acme/remote/run/checkpoint-1/model.ddct"
    environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
    assert_readable(where, archive, model_pair[0], tmp_path, **environment)
    commit = hub._client.head().commit  # type: ignore[attr-defined]
    pinned = f"hf://acme/remote@{commit}/run/checkpoint-1/model.ddct"
    assert pointer.content_id in ddct("inspect", pinned, **environment).stdout


def test_an_object_of_a_store(s3: str, archive: Path, model_pair: tuple[Path, Path], tmp_path: Path) -> None:
    pointer = push(open_hub("s3://bucket/remote", HubOptions(endpoint=s3)), "run", archive)
    where = f"s3://bucket/remote/objects/{pointer.sha256[:2]}/{pointer.sha256}.ddct"
    assert_readable(where, archive, model_pair[0], tmp_path, AWS_ENDPOINT_URL_S3=s3)


@pytest.mark.parametrize(
    ("where", "token", "words"),
    [
        ("hf://acme/nothing/model.ddct", "hf_wrong", "refuses the one it got (401): hf auth login"),
        ("hf://acme/nothing/model.ddct", TOKEN, "no such file, or the token may not see it (404)"),
        ("https://127.0.0.1:9/model.ddct?signature=hidden", "", "refused"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do_and_shows_no_secret(
    hf_lfs: MiniHub, where: str, token: str, words: str
) -> None:
    done = ddct("inspect", where, HF_ENDPOINT=hf_lfs.url, HF_TOKEN=token)
    assert done.returncode == 11
    (line,) = done.stderr.splitlines()
    assert words in line
    assert "hidden" not in line
    assert not token or token not in line


def test_an_object_that_is_not_there_is_named_without_its_signature(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    with pytest.raises(HubError, match="no such file") as caught:
        open_archive("s3://bucket/nothing.ddct")
    assert caught.value.place == "s3://bucket/nothing.ddct"
    with pytest.raises(HubError, match="s3://bucket/key"):
        open_archive("s3://bucket")
    caplog.clear()  # of what the store itself logged
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be read") as caught:
        open_archive("s3://bucket/nothing.ddct")
    assert "Signature" not in caplog.text + str(caught.value)
