"""Large models: steps are searched for on samples, tensors are encoded in bands, and the promises stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import write_model

from ddct_format import errors, pack
from ddct_format.checkpoint import TensorInfo
from ddct_format.pipeline import drafts, steering
from ddct_format.pipeline.drafts import plan_samples


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices that moved in a few directions and by noise of uneven rows, two of each shape."""
    folder = tmp_path_factory.mktemp("pair")
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    base, tuned = {"norm": torch.ones(256)}, {"norm": torch.ones(256) + normal(256) * 0.01}
    for number, (rows, cols) in enumerate([(1024, 256), (1024, 256), (640, 384), (640, 384)]):
        base[f"{number}"] = normal(rows, cols) * 0.05
        change = normal(rows, 3) @ normal(3, cols) + normal(rows, 1).exp() * normal(rows, cols)
        tuned[f"{number}"] = base[f"{number}"] + change * 2e-4 * (1 + number)
    for name, tensors in (("base", base), ("tuned", tuned)):
        write_model(folder / name, {key: tensor.bfloat16() for key, tensor in tensors.items()})
    return folder


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the pair for a large model."""
    monkeypatch.setattr(drafts, "_WHOLE_MODEL", 0)
    monkeypatch.setattr(drafts, "_FEWEST", 200_000)


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("bits", [0.5, 1.0, 2.5])
def test_bits_are_met_from_below(pair: Path, tmp_path: Path, bits: float) -> None:
    report = pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", bits=bits)
    assert 0.98 * bits <= report.tensor_bits_per_weight <= bits
    assert report.verified


@pytest.mark.usefixtures("sampled")
def test_an_error_is_met_from_below(pair: Path, tmp_path: Path) -> None:
    report = pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", error=0.2)
    assert report.error is not None
    assert 0.19 <= report.error <= 0.2


@pytest.mark.usefixtures("sampled")
def test_a_forecast_that_is_wrong_is_made_up_for(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if nothing is corrected on the way, another pass meets the target."""
    monkeypatch.setattr(drafts, "_FEWEST", 1)
    monkeypatch.setattr(steering, "_CHECKPOINTS", ())
    report = pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", bits=1.0)
    assert 0.98 <= report.tensor_bits_per_weight <= 1.0


@pytest.mark.usefixtures("sampled")
def test_a_target_out_of_reach_is_still_refused(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="cannot be met"):
        pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", bits=0.011)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["balanced", "paper", "exact"])
def test_the_archive_does_not_depend_on_memory_or_threads(
    pair: Path, tmp_path: Path, preset: str, little_memory: int
) -> None:
    pack(pair / "base", pair / "tuned", tmp_path / "plenty.ddct", preset=preset, threads=1)
    pack(pair / "base", pair / "tuned", tmp_path / "little.ddct", preset=preset, threads=3, memory=little_memory)
    assert (tmp_path / "plenty.ddct").read_bytes() == (tmp_path / "little.ddct").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["little.ddct", "plenty.ddct"]


def test_of_many_alike_some_stand_for_the_others() -> None:
    many = [TensorInfo(f"{number:04}", "BF16", (2048, 512), 0, 2 << 20) for number in range(1000)]
    plan = plan_samples(many, {one.name: 1 << 20 for one in many})
    chosen = set(plan.stands_for.values())
    assert len(chosen) == 6 and all(plan.stands_for[name] == name for name in chosen)
    assert 0 < plan.share < 1


@pytest.mark.parametrize("alike", range(1, 61))
def test_whoever_stands_for_another_stands_for_itself(alike: int) -> None:
    infos = [TensorInfo(f"{number:03}", "BF16", (1024, 1024), 0, 2 << 20) for number in range(alike)]
    infos.append(TensorInfo("large", "BF16", (8192, 8192), 0, 128 << 20))
    plan = plan_samples(infos, {info.name: info.nbytes // 2 for info in infos})
    assert all(plan.stands_for[name] == name for name in plan.stands_for.values())
