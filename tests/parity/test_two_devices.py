"""Two real GPUs: they share a model, in pack, unpack and live apply, and everything decodes to the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline.models import Tensors, base_model, fine_tune, load, write_model

import ddct_format

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    base = base_model() | {f"large.{number}": (torch.randn(1100, 2048) * 0.05).bfloat16() for number in range(6)}
    write_model(folder / "base", base)
    write_model(folder / "tuned", fine_tune(base))
    return folder


def same(ours: Tensors, theirs: Tensors) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name].cpu().view(-1).view(torch.uint8), theirs[name].cpu().view(-1).view(torch.uint8))
        for name in theirs
        if theirs[name].numel()
    )


@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_both_pack_and_everybody_decodes_the_same(models: Path, preset: str) -> None:
    """In a process of its own, which says what each device was asked for."""
    program = (
        "import sys, torch, ddct_format\n"
        "base, tuned, archive, out, preset, device = sys.argv[1:]\n"
        "ddct_format.pack(base, tuned, archive, preset=preset, device=device, threads=4)\n"
        "ddct_format.unpack(archive, base, out, device=device, threads=4)\n"
        "print(*(torch.cuda.max_memory_allocated(number) for number in range(2)))\n"
    )
    decoded = []
    for device in ("cuda", "cuda:0", "cuda:1"):
        archive, out = models / f"{preset}-{device}.ddct", models / f"{preset}-{device}"
        run = subprocess.run(
            [sys.executable, "-c", program, str(models / "base"), str(models / "tuned"), str(archive), str(out), preset,
             device],
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-4000:]
        used = [int(number) > 0 for number in run.stdout.split()]
        assert used == [device != "cuda:1", device != "cuda:0"]
        ddct_format.unpack(archive, models / "base", models / f"{out.name}-cpu")
        assert same(load(out), load(models / f"{out.name}-cpu"))
        decoded.append(load(out))
    assert all(same(decoded[0], other) for other in decoded[1:])


@pytest.mark.parametrize("alternating", [False, True])
def test_a_model_that_lies_on_both_is_changed_in_place(models: Path, alternating: bool) -> None:
    archive = models / f"apply-{alternating}.ddct"
    ddct_format.pack(models / "base", models / "tuned", archive)
    ddct_format.unpack(archive, models / "base", models / f"apply-{alternating}")
    base = load(models / "base")
    place = {name: number % 2 if alternating else 2 * number // len(base) for number, name in enumerate(base)}
    model = {name: tensor.to(f"cuda:{place[name]}") for name, tensor in base.items()}
    applied = ddct_format.apply(model, archive)
    assert same(model, load(models / f"apply-{alternating}"))
    assert {tensor.device.index for tensor in model.values()} == {0, 1}
    applied.revert()
    assert same(model, base)
