"""Resident memory of real processes: it depends on ``--memory``, not on the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddct_format.checkpoint import SafetensorsWriter

MEMORY = 256 << 20
RUNNER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A child's largest resident set is at least that of its parent: so the parent is one that has imported little."""

LARGE = (30_000, 13_000)
"""Of one tensor, 780 MB: three times the working set."""


def write_pair(folder: Path, shape: tuple[int, int], others: int) -> Path:
    """One tensor of real noise, changed by noise, and others that are kept; each with its own bytes."""
    random = np.random.default_rng(0)
    block = random.standard_normal(1 << 20, dtype=np.float32) * 0.02
    noise = random.standard_normal(1 << 20, dtype=np.float32) * 0.0004
    names = [("large.weight", "BF16", shape), *((f"kept.{n:03}", "BF16", (512, 1024)) for n in range(others))]
    for model, values in (("base", block), ("tuned", block + noise)):
        (folder / model).mkdir(parents=True)
        with SafetensorsWriter(folder / model / "model.safetensors", names, {}) as writer:
            data = (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
            with writer.region("large.weight") as region:
                for start in range(0, region.array.size, data.size):
                    part = region.array[start : start + data.size]
                    part[:] = data[: part.size]
                    region.release(start, start + part.size)
            for number, (name, _, _) in enumerate(names[1:]):
                writer.write(name, np.full(512 * 1024, number, dtype="<u2").view(np.uint8))
    return folder


def resident(*arguments: object) -> int:
    """The largest resident set of a command, in bytes."""
    command = [sys.executable, "-m", "ddct_format", *map(str, arguments), "--memory", str(MEMORY), "--threads", "2"]
    result = subprocess.run([sys.executable, "-c", RUNNER, *command], stdout=subprocess.PIPE, check=True)
    return int(result.stdout) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["balanced", "exact"])
def test_the_working_set_bounds_what_a_large_model_adds(tmp_path: Path, preset: str) -> None:
    added: dict[str, int] = {}
    for sign, (name, shape, others) in ((-1, ("small", (32, 64), 1)), (1, ("large", LARGE, 300))):
        folder = write_pair(tmp_path / name, shape, others)
        archive, base = folder / "t.ddct", folder / "base"
        steps = {
            "pack": ("pack", base, folder / "tuned", archive, "--preset", preset),
            "verify": ("verify", archive, "--base", base),
            "unpack": ("unpack", archive, "--base", base, folder / "out"),
        }
        for step, arguments in steps.items():
            added[step] = added.get(step, 0) + sign * resident(*arguments)
    print({step: f"{size >> 20} MiB more than for a small model" for step, size in added.items()})
    assert max(added.values()) <= MEMORY
