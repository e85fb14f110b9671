"""A GPU that a training has filled: a limit is kept, as others see it, and what does not fit goes elsewhere.

A second process holds nearly all memory of the device, and watches how much of it is free meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pipeline.models import base_model, fine_tune, load, write_model

import ddct_format

from .test_devices import needs_gpu

HOLDER = """
import select, sys, torch
torch.empty(1, device="cuda")
left = int(sys.argv[1])
held = torch.empty(torch.cuda.mem_get_info()[0] - left, dtype=torch.uint8, device="cuda")
least = torch.cuda.mem_get_info()[0]
print(least, flush=True)
while True:
    if select.select([sys.stdin], [], [], 0.001)[0]:
        if not sys.stdin.readline():
            break
        print(least, flush=True)
        least = 1 << 60
    least = min(least, torch.cuda.mem_get_info()[0])
"""
SLACK = 48 << 20
"""For kernels, which CUDA loads when they are first used."""
LIMIT = 128 << 20


@contextmanager
def filled_device(left: int) -> Iterator[Callable[[], int]]:
    """All memory but ``left`` bytes is taken; what it gives is the least that was free since it was last called."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(left)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None

        def least() -> int:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.write("\n")
            holder.stdin.flush()
            return int(holder.stdout.readline())

        try:
            assert int(holder.stdout.readline()) <= left
            yield least
        finally:
            holder.stdin.close()


def ddct(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ddct_format", *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if name != "DDCT_GPU_MEMORY"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def models(tmp_path: Path) -> Path:
    small, large = base_model(), base_model()
    large |= {f"large.{number}": (torch.randn(4096, 4096) * 0.05).bfloat16() for number in range(2)}
    for name, base in (("small", small), ("large", large)):
        write_model(tmp_path / f"{name}-base", base)
        write_model(tmp_path / f"{name}-tuned", fine_tune(base))
    return tmp_path


def packed_and_unpacked(models: Path, name: str, out: str, *limit: str) -> None:
    archive = models / f"{out}.ddct"
    options = ("--device", "cuda", *limit)
    runs = [ddct("pack", models / f"{name}-base", models / f"{name}-tuned", archive, "--preset", "paper", *options)]
    runs.append(ddct("unpack", archive, "--base", models / f"{name}-base", models / out, *options))
    for run in runs:
        assert run.returncode == 0, run.stderr[-4000:]


def same_as_on_the_cpu(models: Path, out: str) -> bool:
    ddct_format.unpack(models / f"{out}.ddct", models / "large-base", models / f"{out}-cpu")
    ours, theirs = load(models / out), load(models / f"{out}-cpu")
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "text",
    [
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "loading kernels: out of memory",
    ],
)
def test_shortages_are_told_from_other_errors(text: str) -> None:
    pytest.importorskip("triton")
    from ddct_format.backends.cuda.device import is_out_of_memory

    assert is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(RuntimeError("CUDA error: unknown error"))  # unless the device is full


@pytest.mark.gpu
@needs_gpu
def test_a_limit_is_kept_as_others_see_it_and_nearly_nothing_is_enough(models: Path) -> None:
    """What CUDA itself takes comes on top: it is what a model of a few kilobytes takes."""
    with filled_device(8 << 30) as least:
        free = least()
        packed_and_unpacked(models, "small", "little", "--gpu-memory", str(LIMIT))
        taken_by_cuda = free - least()
        packed_and_unpacked(models, "large", "limited", "--gpu-memory", str(LIMIT))
        limited = free - least() - taken_by_cuda
        packed_and_unpacked(models, "large", "free")
        unlimited = free - least() - taken_by_cuda
    print(f"MiB: CUDA {taken_by_cuda >> 20}, limited {limited >> 20}, unlimited {unlimited >> 20}")
    for left in (16, 8, 4):
        with filled_device(taken_by_cuda + (left << 20)):
            packed_and_unpacked(models, "large", f"squeezed-{left}")
    assert unlimited > LIMIT + SLACK  # so the limit was felt
    assert limited <= LIMIT + SLACK
    assert all(same_as_on_the_cpu(models, out) for out in ("limited", "squeezed-16", "squeezed-8", "squeezed-4"))


@pytest.mark.gpu
@needs_gpu
def test_a_full_device_is_refused_and_not_chosen(models: Path) -> None:
    pack = ("pack", models / "small-base", models / "small-tuned")
    with filled_device(32 << 20):
        refused = ddct(*pack, models / "refused.ddct", "--device", "cuda:0")
        assert refused.returncode == 9, refused.stderr[-4000:]
        assert "memory" in refused.stderr
        assert "Traceback" not in refused.stderr
        if torch.cuda.device_count() == 1:
            chosen = ddct(*pack, models / "chosen.ddct", "--device", "auto")
            assert chosen.returncode == 0, chosen.stderr[-4000:]
