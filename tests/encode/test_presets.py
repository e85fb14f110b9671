"""Presets, targets and guards on whole models, from directory to directory."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddct_format import errors, open_archive, pack, unpack, verify
from ddct_format.encode.presets import PRESETS, get_preset
from ddct_format.pipeline.guard import Evaluation, read_metric

SEARCHED = [name for name, preset in PRESETS.items() if preset.searched]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``tuned``: matrices that moved in a few directions and by noise of uneven rows, norms and a head."""
    folder = tmp_path_factory.mktemp("models")
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    base, tuned = {}, {}
    for number, (rows, cols) in enumerate([(384, 256), (256, 384), (512, 256), (256, 256)]):
        name = f"layers.{number}.weight"
        base[name] = (normal(rows, cols) * 0.05).bfloat16()
        change = normal(rows, 3) @ normal(3, cols) + normal(rows, 1).exp() * normal(rows, cols)
        tuned[name] = (base[name].float() + change * 2e-4 * (1 + number)).bfloat16()
    base["norm.weight"] = torch.ones(256, dtype=torch.bfloat16)
    tuned["norm.weight"] = (base["norm.weight"].float() + normal(256) * 0.05).bfloat16()
    base["still.weight"] = tuned["still.weight"] = (normal(64, 64)).bfloat16()
    base["head.weight"] = (normal(300, 256) * 0.05).bfloat16()
    tuned["head.weight"] = (base["head.weight"].float() + normal(300, 256) * 1e-3).bfloat16()
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    (folder / "tuned" / "vocabulary.json").write_text("".join(map(chr, range(35, 90))) * 100)
    return folder


def test_presets_are_ordered_in_size_and_error(models: Path, tmp_path: Path) -> None:
    reports = [pack(models / "base", models / "tuned", tmp_path / f"{p}.ddct", preset=p) for p in SEARCHED]
    found = [report.error for report in reports]
    assert None not in found
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    for name, report in zip(SEARCHED, reports, strict=True):
        target = PRESETS[name].bits
        assert target is not None
        assert 0.98 * target <= report.tensor_bits_per_weight <= target, name
        assert report.verified and report.preset == name


@pytest.mark.parametrize("bits", [0.2, 0.8, 3.0, 5.0])
def test_any_number_of_bits_is_met(models: Path, tmp_path: Path, bits: float) -> None:
    report = pack(models / "base", models / "tuned", tmp_path / "t.ddct", bits=bits)
    assert 0.98 * bits <= report.tensor_bits_per_weight <= bits
    assert report.preset == f"bits={bits:g}"
    with open_archive(tmp_path / "t.ddct") as archive:
        stored = sum(archive.reader.stored_size(name) for name in archive.tensors if archive.tensors[name].layers)
    assert 8 * stored / report.parameters < report.tensor_bits_per_weight < report.bits_per_weight


@pytest.mark.parametrize("error", [0.02, 0.2, 0.5])
def test_an_error_is_met(models: Path, tmp_path: Path, error: float) -> None:
    report = pack(models / "base", models / "tuned", tmp_path / "t.ddct", error=error)
    assert report.error is not None
    assert 0.96 * error <= report.error <= error


def test_a_target_out_of_reach_is_a_clear_error(models: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="cannot be met"):
        pack(models / "base", models / "tuned", tmp_path / "t.ddct", bits=0.01)
    assert not list(tmp_path.iterdir())


def test_settings_that_make_no_sense_are_refused() -> None:
    for arguments in ({"bits": 0.5, "error": 0.1}, {"bits": 0.0}, {"bits": float("nan")}, {"error": 2.0}):
        with pytest.raises(errors.ConfigError):
            get_preset("balanced", **arguments)  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigError, match="takes no target"):
        get_preset("paper", bits=1.0)
    with pytest.raises(errors.ConfigError, match="unknown preset"):
        get_preset("nonsense")


def test_packing_twice_gives_the_same_bytes_whatever_the_threads(models: Path, tmp_path: Path) -> None:
    pack(models / "base", models / "tuned", tmp_path / "one.ddct", preset="tiny", threads=1)
    pack(models / "base", models / "tuned", tmp_path / "two.ddct", preset="tiny", threads=3)
    assert (tmp_path / "one.ddct").read_bytes() == (tmp_path / "two.ddct").read_bytes()


def test_tensors_can_be_kept_by_pattern(models: Path, tmp_path: Path) -> None:
    keep = [("head*", "raw"), ("layers.[01].*", "high"), ("layers.*", "paper")]
    report = pack(models / "base", models / "tuned", tmp_path / "t.ddct", preset="tiny", keep=keep)
    unpack(tmp_path / "t.ddct", models / "base", tmp_path / "out")
    tuned = load_file(models / "tuned" / "model.safetensors")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["head.weight"], tuned["head.weight"])
    with open_archive(tmp_path / "t.ddct") as archive:
        assert archive.tensors["head.weight"].op == "replace"
        assert archive.tensors["still.weight"].op == "keep"
        quantisers = {n: r.layers[0].params.get("quantiser") for n, r in archive.tensors.items() if r.layers}
        high = [f"layers.{number}.weight" for number in (0, 1)]
        stored = sum(archive.reader.stored_size(name) for name in high)
        assert 1.9 < 8 * stored / sum(archive.tensors[name].elements for name in high) <= 2.0
    assert quantisers["layers.2.weight"] == quantisers["layers.3.weight"] == "affine"
    assert quantisers["layers.0.weight"] == quantisers["layers.1.weight"] == "levels"
    assert report.preset == "tiny"
    with pytest.raises(errors.ConfigError, match="unknown preset"):
        pack(models / "base", models / "tuned", tmp_path / "x.ddct", keep=[("*", "nonsense")])
    with pytest.raises(errors.ConfigError, match=r"no tensor is named like 'hed\*'"):
        pack(models / "base", models / "tuned", tmp_path / "x.ddct", keep=[("head*", "raw"), ("hed*", "raw")])
    assert not (tmp_path / "x.ddct").exists()


def test_norms_are_quantised_finely(models: Path, tmp_path: Path) -> None:
    pack(models / "base", models / "tuned", tmp_path / "t.ddct", preset="tiny")
    with open_archive(tmp_path / "t.ddct") as archive:
        record = archive.tensors["norm.weight"]
        assert record.op == "add" and record.error is not None and record.error < 0.05


def test_max_error_refuses_and_names_the_tensors(models: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.QualityError, match=r"tensors have a relative error above 0\.1: .*layers\.") as caught:
        pack(models / "base", models / "tuned", tmp_path / "t.ddct", preset="small", max_error=0.1)
    assert caught.value.place == str(tmp_path / "t.ddct")
    assert not list(tmp_path.iterdir())
    assert pack(models / "base", models / "tuned", tmp_path / "t.ddct", preset="high", max_error=0.5).verified


SCRIPT = """
import json, sys
import numpy as np
data = open(sys.argv[1] + "/model.safetensors", "rb").read()
start = 8 + int.from_bytes(data[:8], "little")
first, stop = json.loads(data[8:start])["norm.weight"]["data_offsets"]
norm = (np.frombuffer(data[start + first : start + stop], "<u2").astype("<u4") << 16).view("<f4")
print("tensors: 7", "spread", np.square(norm - 1).mean() ** 0.5)
"""


def test_a_models_own_metric_decides(models: Path, tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(SCRIPT)} {{}}"

    def run(name: str, evaluation: Evaluation) -> float | None:
        return pack(models / "base", models / "tuned", tmp_path / name, preset="small", evaluation=evaluation).metric

    assert run("good.ddct", Evaluation(command, smallest=0.03, largest=0.07)) == pytest.approx(0.05, rel=0.3)
    before = sorted(tmp_path.iterdir())
    for bad, reason in (
        (Evaluation(command, smallest=0.5), "below 0.5"),
        (Evaluation(command, largest=0.01), "above 0.01"),
        (Evaluation(f"{shlex.quote(sys.executable)} -c 'import sys; sys.exit(3)'"), "status 3"),
        (Evaluation("true"), "no number"),
    ):
        with pytest.raises(errors.QualityError, match=reason) as caught:
            run("bad.ddct", bad)
        assert caught.value.place == str(tmp_path / "bad.ddct")
    for impossible in ("", "'", "/does/not/exist"):
        with pytest.raises(errors.ConfigError):
            run("bad.ddct", Evaluation(impossible))
    assert sorted(tmp_path.iterdir()) == before
    verify(tmp_path / "good.ddct", models / "base")


@pytest.mark.parametrize(
    ("output", "metric"),
    [
        ("loss 3.5\naccuracy 0.91\n", 0.91),
        ('3\n{"task": "mnist", "value": 0.5, "seconds": 12}\n', 0.5),
        ('{"seconds": 12}\n', 12.0),
        ("-1e-3", -0.001),
        ("epoch3 of v2.x", None),
        ("nothing\n", None),
        ("", None),
    ],
)
def test_the_metric_is_the_last_number_or_a_json_value(output: str, metric: float | None) -> None:
    assert read_metric(output) == metric


@pytest.mark.zoo
@pytest.mark.parametrize("preset", SEARCHED)
def test_real_models_meet_their_target(zoo: Path, tmp_path: Path, preset: str) -> None:
    report = pack(zoo / "base-vit", zoo / "vit-mnist", tmp_path / "t.ddct", preset=preset)
    target = PRESETS[preset].bits
    assert target is not None
    assert 0.98 * target <= report.tensor_bits_per_weight <= target
