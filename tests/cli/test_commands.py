"""The command line as a user meets it: real processes, output, JSON, exit statuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file


def ddct(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddct_format", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def succeed(*arguments: object) -> dict[str, Any]:
    result = ddct(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, tuned, other (a wrong base) and tuned.ddct."""
    folder = tmp_path_factory.mktemp("models")
    random = torch.Generator().manual_seed(0)
    base = {"a.weight": torch.randn(64, 96, generator=random), "norm": torch.ones(64)}
    for name, noise in (("base", 0.0), ("tuned", 0.01), ("other", 1.0)):
        (folder / name).mkdir()
        tensors = {key: value + noise * torch.randn(value.shape, generator=random) for key, value in base.items()}
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    assert ddct("pack", folder / "base", folder / "tuned", folder / "tuned.ddct", "--preset", "paper").returncode == 0
    return folder


def test_pack_unpack_inspect_and_verify_speak_json(models: Path, tmp_path: Path) -> None:
    packed = succeed("pack", models / "base", models / "tuned", tmp_path / "t.ddct", "--preset", "paper-mix")
    assert packed["counts"] == {"add": 1, "replace": 1}
    assert packed["verified"] is True
    inspected = succeed("inspect", tmp_path / "t.ddct", "--tensors")
    assert inspected["content_id"] == packed["content_id"]
    assert [tensor["name"] for tensor in inspected["tensors"]] == ["a.weight", "norm"]
    verified = succeed("verify", tmp_path / "t.ddct", "--base", models / "base")
    assert verified["decoded"] == verified["tensors"] == 2
    unpacked = succeed("unpack", tmp_path / "t.ddct", "--base", models / "base", tmp_path / "out")
    assert unpacked["applied"] == unpacked["tensors"] == 2
    assert (tmp_path / "out" / "config.json").exists()


def test_a_limit_of_gpu_memory_reaches_the_process(models: Path, tmp_path: Path) -> None:
    """The backend takes it from there, on a machine with a GPU: see tests/parity/test_devices.py."""
    command = ("pack", models / "base", models / "tuned", tmp_path / "t.ddct", "--preset", "paper")
    shown = f"{sys.executable} -c 'import os; print(os.environ[\"DDCT_GPU_MEMORY\"])'"
    assert succeed(*command, "--eval", shown, "--gpu-memory", "1.5G")["metric"] == 1.5 * 2**30
    assert ddct(*command, "--gpu-memory", "much").returncode == 2


def test_the_same_in_words(models: Path, tmp_path: Path) -> None:
    result = ddct("unpack", models / "tuned.ddct", "--base", models / "base", tmp_path / "out")
    assert "applied   2 of 2 tensors" in result.stdout
    result = ddct("inspect", models / "tuned.ddct", "--tensors")
    assert "bits per weight" in result.stdout and "a.weight" in result.stdout
    result = ddct("verify", models / "tuned.ddct")
    assert "no base given" in result.stdout


def test_each_refusal_has_its_exit_status_and_one_line(models: Path, tmp_path: Path) -> None:
    archive = (models / "tuned.ddct").read_bytes()
    (tmp_path / "short.ddct").write_bytes(archive[:-1])
    (tmp_path / "damaged.ddct").write_bytes(archive[:-1] + bytes([archive[-1] ^ 1]))
    (tmp_path / "newer.ddct").write_bytes(b"\x89DDCT\r\n\x1a\x02\x00" + archive[10:])
    (tmp_path / "other.ddct").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "taken").mkdir()
    base = models / "base"
    cases = [
        (3, "truncated", ("unpack", tmp_path / "short.ddct", "--base", base, tmp_path / "o")),
        (3, "corrupt", ("verify", tmp_path / "damaged.ddct")),
        (5, "invalid", ("verify", tmp_path / "other.ddct")),
        (6, "base-mismatch", ("unpack", models / "tuned.ddct", "--base", models / "other", tmp_path / "o")),
        (7, "checkpoint", ("pack", base, tmp_path / "taken", tmp_path / "o.ddct")),
        (8, "output-exists", ("unpack", models / "tuned.ddct", "--base", base, tmp_path / "taken")),
        (10, "storage", ("verify", tmp_path / "absent.ddct")),
    ]
    for status, code, arguments in cases:
        result = ddct(*arguments, "--json")
        assert result.returncode == status, (code, result.stderr)
        assert result.stderr.startswith("ddct: error: ") and result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr
        error = json.loads(result.stdout)["error"]
        assert (error["code"], error["exit_status"]) == (code, status)
        assert error["place"] and error["reason"]


def test_exact_archives_and_their_lossy_prefix(models: Path, tmp_path: Path) -> None:
    base = ("--base", models / "base")
    for options in (("--preset", "exact"), ("--preset", "paper", "--exact")):
        archive = tmp_path / f"{len(options)}.ddct"
        succeed("pack", models / "base", models / "tuned", archive, *options)
        out = tmp_path / f"out{len(options)}"
        assert succeed("unpack", archive, *base, out, "--exact")["lossless"] is True
        weights = "model.safetensors"
        assert (out / weights).read_bytes() == (models / "tuned" / weights).read_bytes()
    assert succeed("unpack", archive, *base, tmp_path / "lossy", "--lossy")["lossless"] is False

    (tmp_path / "cut.ddct").write_bytes(archive.read_bytes()[:-1])
    refused = ddct("unpack", tmp_path / "cut.ddct", *base, tmp_path / "o")
    assert refused.returncode == 3 and "--lossy" in refused.stderr and refused.stderr.count("\n") == 1
    assert succeed("unpack", tmp_path / "cut.ddct", *base, tmp_path / "cut", "--lossy")["lossless"] is False
    assert ddct("unpack", models / "tuned.ddct", *base, tmp_path / "o", "--exact").returncode == 12
    assert ddct("unpack", archive, *base, tmp_path / "o", "--exact", "--lossy").returncode == 2


def test_pack_takes_a_target_and_tensors_of_their_own(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.ddct"
    packed = succeed("pack", models / "base", models / "tuned", out, "--bits", 5)
    assert packed["preset"] == "bits=5" and packed["counts"] == {"add": 2}
    assert 4.9 <= packed["tensor_bits_per_weight"] <= 5
    kept = succeed("pack", models / "base", models / "tuned", tmp_path / "k.ddct", "--keep", "nor*", "raw")
    assert kept["counts"] == {"add": 1, "replace": 1}
    packed = succeed("pack", models / "base", models / "tuned", tmp_path / "e.ddct", "--error", 0.1)
    assert 0.095 <= packed["error"] <= 0.1
    assert succeed("pack", models / "base", models / "tuned", tmp_path / "d.ddct")["preset"] == "balanced"


def test_a_guard_refuses_with_its_own_status(models: Path, tmp_path: Path) -> None:
    command = [models / "base", models / "tuned", tmp_path / "t.ddct", "--preset", "small"]
    result = ddct("pack", *command, "--max-error", 1e-4, "--json")
    assert result.returncode == 13 and "a.weight" in result.stderr
    assert json.loads(result.stdout)["error"]["code"] == "quality"
    counting = f"{sys.executable} -c 'import os, sys; print(len(os.listdir(sys.argv[1])))'"
    assert ddct("pack", *command, "--eval", counting, "--min-metric", 3).returncode == 13
    assert ddct("pack", *command, "--min-metric", 3).returncode == 12
    assert not list(tmp_path.iterdir())
    assert succeed("pack", *command, "--eval", counting, "--max-metric", 2)["metric"] == 2


def test_usage_errors_exit_with_2(models: Path) -> None:
    assert ddct("pack").returncode == 2
    assert ddct("pack", "a", "b", "c", "--preset", "nonsense").returncode == 2
    assert ddct("nonsense").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [("pack",), ("pack", "a", "b", "c", "--threads", "0"), ("nonsense",), ("unpack", "a", "b", "--unknown")],
)
def test_usage_errors_speak_json_too(arguments: tuple[str, ...]) -> None:
    result = ddct(*arguments, "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.returncode, error["code"], error["exit_status"]) == (2, "usage", 2)
    assert error["reason"] and error["reason"] in " ".join(result.stderr.split())


def test_an_interrupt_speaks_json_too(models: Path, tmp_path: Path) -> None:
    script = f'import time; open("{tmp_path}/started", "w"); time.sleep(60)'
    command = [sys.executable, "-m", "ddct_format", "pack", models / "base", models / "tuned", tmp_path / "t.ddct"]
    with subprocess.Popen(
        [*command, "--preset", "paper", "--eval", shlex.join([sys.executable, "-c", script]), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, words = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert words.strip() == "ddct: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["started"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_what_cannot_be_printed_is_a_refusal_of_the_system(models: Path, more: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "ddct_format", "inspect", str(models / "tuned.ddct"), *more]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 10
    assert result.stderr == "ddct: error: no space left on device\n"


@pytest.mark.parametrize("command", ["pack", "unpack", "verify", "sweep", "report", "pull"])
def test_all_that_works_long_can_be_held_back(command: str) -> None:
    shown = ddct(command, "--help").stdout
    for option in ("--threads", "--memory", "--drop-cache", "--nice", "--device", "--gpu-memory", "--json"):
        assert option in shown


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_that_no_terminal_can_show_are_told_all_the_same(models: Path, tmp_path: Path, encoding: str) -> None:
    path = os.fsencode(tmp_path) + b"/\xc3\xa4\xff.ddct"
    Path(os.fsdecode(path)).write_bytes((models / "tuned.ddct").read_bytes())
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "ddct_format", "inspect", path, *more]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, check=True)
        assert not done.stderr
    assert json.loads(done.stdout)["archive"] == os.fsdecode(path)


def test_a_model_may_have_more_shards_than_a_shell_lets_open(models: Path, tmp_path: Path) -> None:
    names = [f"model-{number:03}.safetensors" for number in range(80)]
    for model, noise in (("base", 0.0), ("tuned", 0.01)):
        (tmp_path / model).mkdir()
        for name in names:
            save_file({name: torch.ones(4) + noise}, tmp_path / model / name, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: name for name in names}}
        (tmp_path / model / "model.safetensors.index.json").write_text(json.dumps(index))

    def with_few_files(*arguments: object) -> None:
        command = ["sh", "-c", 'ulimit -Sn 64 && exec "$@"', "sh", sys.executable, "-m", "ddct_format"]
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    with_few_files("pack", tmp_path / "base", tmp_path / "tuned", tmp_path / "t.ddct", "--preset", "exact")
    with_few_files("unpack", tmp_path / "t.ddct", "--base", tmp_path / "base", tmp_path / "out")
    assert (tmp_path / "out" / names[79]).read_bytes() == (tmp_path / "tuned" / names[79]).read_bytes()


def test_help_and_version() -> None:
    result = ddct("--help")
    assert result.returncode == 0
    for command in ("pack", "unpack", "inspect", "verify", "pull", "daemon"):
        assert command in result.stdout
        assert ddct(command, "--help").returncode == 0
    assert ddct("--version").stdout.startswith("ddct")


def test_memory_is_given_in_units_and_a_working_set_has_a_least_size(models: Path, tmp_path: Path) -> None:
    arguments = ("verify", models / "tuned.ddct", "--base", models / "base", "--nice", 5, "--drop-cache")
    assert succeed(*arguments, "--memory", "64M")["decoded"] == 2
    assert succeed(*arguments, "--memory", "0.5GiB")["decoded"] == 2
    assert ddct(*arguments, "--memory", "1K").returncode == 12
    assert ddct(*arguments, "--memory", "much").returncode == 2


def test_pack_takes_many_fine_tunes(models: Path, tmp_path: Path) -> None:
    many = (models / "tuned", models / "other")
    result = succeed("pack", models / "base", *many, tmp_path / "out", "--preset", "paper")
    assert [entry["archive"] for entry in result["archives"]] == [
        str(tmp_path / "out" / name) for name in ("tuned.ddct", "other.ddct")
    ]
    assert (result["packed"], result["failed"]) == (2, 0)
    again = ddct("pack", models / "base", *many, models / "absent", "--out-dir", tmp_path / "out", "--json")
    assert again.returncode == 8
    parsed = json.loads(again.stdout)
    assert [entry["error"]["code"] for entry in parsed["archives"]] == ["output-exists", "output-exists", "checkpoint"]
    assert (parsed["packed"], parsed["failed"]) == (0, 3)
    words = ddct("pack", models / "base", models / "tuned", "--out-dir", tmp_path / "more", "--preset", "paper")
    assert words.returncode == 0
    assert "1 of 1 fine-tunes packed" in words.stdout


def test_pack_writes_no_archives_into_a_model(models: Path) -> None:
    assert ddct("pack", models / "base", models / "tuned", models / "other", models / "base").returncode == 2
    assert ddct("pack", models / "base", models / "tuned").returncode == 2
