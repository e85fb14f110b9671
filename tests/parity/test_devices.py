"""Which GPUs a name means, several of them at once, and what happens when memory runs out."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline.models import base_model, fine_tune, load, write_model

import ddct_format
from ddct_format.backends import get_backend
from ddct_format.errors import ConfigError

HAS_GPU = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:0,1"])
@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="cuda"):
        get_backend(name)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["cuda:", "cuda:99", "cuda:0,99", "cuda:x"])
def test_names_of_no_device_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cuda"):
        get_backend(name)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    base = base_model()
    base["large.weight"] = (torch.randn(2100, 2048) * 0.05).bfloat16()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", fine_tune(base))
    return tmp_path


def packed_and_unpacked(models: Path, device: str) -> dict[str, torch.Tensor]:
    ddct_format.pack(models / "base", models / "tuned", models / f"{device}.ddct", preset="paper", device=device)
    ddct_format.unpack(models / f"{device}.ddct", models / "base", models / device, device=device)
    ddct_format.unpack(models / f"{device}.ddct", models / "base", models / f"{device}-cpu")
    ours, theirs = load(models / device), load(models / f"{device}-cpu")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return ours


@pytest.mark.gpu
@needs_gpu
def test_a_model_is_packed_and_unpacked_on_the_device(models: Path) -> None:
    assert packed_and_unpacked(models, "cuda")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_limit_of_memory_is_kept_and_what_does_not_fit_degrades(models: Path, way: str) -> None:
    """24 MB are too little for the large tensor in one piece. In a process of its own: what is held already stays."""
    program = (
        "import sys, torch\n"
        "from ddct_format.cli.main import cli\n"
        "base, tuned, archive, out, *limit = sys.argv[1:]\n"
        "limit += ['--device', 'cuda']\n"
        "cli.main(['pack', base, tuned, archive, '--preset', 'paper', *limit], standalone_mode=False)\n"
        "cli.main(['unpack', archive, '--base', base, out, *limit], standalone_mode=False)\n"
        "print(torch.cuda.max_memory_reserved())\n"
    )
    paths = [models / "base", models / "tuned", models / "capped.ddct", models / "capped"]
    limit = ["--gpu-memory", "24M"] if way == "option" else []
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths), *limit],
        env=os.environ | ({"DDCT_GPU_MEMORY": "24M"} if way == "variable" else {}),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert 0 < int(run.stdout.split()[-1]) <= 24 << 20
    ddct_format.unpack(models / "capped.ddct", models / "base", models / "cpu")
    ours, theirs = load(models / "capped"), load(models / "cpu")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.gpu
@needs_gpu
def test_threads_share_several_devices(models: Path) -> None:
    from codec.layers import base_bytes

    from ddct_format.backends.cuda import CudaBackend
    from parity.test_cuda import large_layer

    devices = [torch.device("cuda", number % torch.cuda.device_count()) for number in range(2)]
    shared = CudaBackend(*devices)
    params, payload = large_layer(16)
    base = base_bytes(params.grid.rows * params.grid.cols, "BF16", 2, finite=True)
    wanted = get_backend("cpu").apply(params, payload, base, "BF16", "BF16")
    results: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(np.array_equal(shared.apply(params, payload, base, "BF16", "BF16"), wanted))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
