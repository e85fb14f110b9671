"""A 7B pair, or a smaller one, from page cache to archive, to a directory, and onto a resident base: see ``gpu.py``."""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file

from ddct_format import apply, open_archive, pack, unpack

__all__ = ["NORM", "loads", "model_7b", "pipeline", "swaps"]

Result = TypeVar("Result")

NORM = (4096,)
_LONG = 5.0
"""Seconds."""


def timed(what: str, work: Callable[[], Result], after: Callable[[Result], object] = lambda _: None) -> None:
    """Print the best and the median of seven calls; of three if they take long."""
    times: list[float] = []
    while len(times) < 3 or (len(times) < 7 and sum(times) < _LONG):
        synchronize()
        started = time.perf_counter()
        result = work()
        synchronize()
        times.append(time.perf_counter() - started)
        after(result)
        del result
    print(f"| {what} | {min(times):.3f} (median {statistics.median(times):.3f}) |", flush=True)


def synchronize() -> None:
    for number in range(torch.cuda.device_count()):
        torch.cuda.synchronize(number)


def swaps(model: Mapping[str, torch.Tensor], archive: Path, preset: str) -> None:
    for checks in (False, True):
        timed(
            f"swap, {preset}, digests of base and result {'checked' if checks else 'not checked'}",
            lambda checks=checks: apply(model, archive, check_base=checks, verify=checks),
            lambda applied: applied.revert(),
        )


def loads(full: Path, archive: Path) -> None:
    """What a swap is compared with."""
    for what, path in (("the archive's bytes", archive), ("the full fine-tune", full)):
        staged = torch.empty(path.stat().st_size, dtype=torch.uint8, pin_memory=True)
        timed(f"pinned copy of {what}", lambda staged=staged: staged.to("cuda", non_blocking=True))
        del staged
    timed("safetensors load of the full fine-tune", lambda: load_file(full, device="cuda"))


def model_7b(layers: int = 32) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors of a 7B Llama, or of one with fewer layers."""
    layer = [(f"self_attn.{kind}_proj.weight", (4096, 4096)) for kind in "qkvo"]
    layer += [(f"mlp.{kind}_proj.weight", (11008, 4096)) for kind in ("gate", "up")]
    layer += [("mlp.down_proj.weight", (4096, 11008))]
    layer += [(f"{kind}_layernorm.weight", NORM) for kind in ("input", "post_attention")]
    every = [(f"model.layers.{number}.{name}", shape) for number in range(layers) for name, shape in layer]
    outer = [
        ("model.embed_tokens.weight", (32000, 4096)),
        ("lm_head.weight", (32000, 4096)),
        ("model.norm.weight", NORM),
    ]
    return [*outer, *every]


def write_pair(folder: Path, layers: int) -> int:
    """A base and a fine-tune in ``folder``: noise and eight strong directions in each matrix; their weights."""
    for fine_tuned in (False, True):
        tensors = {}
        for number, (name, shape) in enumerate(model_7b(layers)):
            torch.manual_seed(number)
            values = torch.randn(shape, device="cuda") * 0.02
            if fine_tuned:
                values += torch.randn(shape, device="cuda") * 2e-4
                if len(shape) == 2:
                    left, right = torch.randn(shape[0], 8, device="cuda"), torch.randn(8, shape[1], device="cuda")
                    values += left @ right * 5e-5
            tensors[name] = values.bfloat16().cpu()
        path = folder / ("tuned" if fine_tuned else "base")
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
    return sum(tensor.numel() for tensor in tensors.values())


class Watch:
    """Seconds of the phases of a pack or unpack, and the peaks of memory meanwhile; a context manager.

    Attributes:
        phases: what was done, and for how long.
        host: most bytes of this process that are not pages of files; sampled.
        device: most bytes that torch held on a device.
    """

    def __enter__(self) -> Watch:
        self.phases = [("opening", 0.0)]
        self.host = 0
        self._running = True
        self._started = self._last = time.perf_counter()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        torch.cuda.empty_cache()
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
        return self

    def __exit__(self, *exception: object) -> None:
        self.note("")
        self.seconds = self._last - self._started
        self.device = most_held()
        self._running = False
        self._thread.join()

    def progress(self, done: int, total: int, what: str) -> None:
        """For the argument of that name."""
        if not self.phases or self.phases[-1][0] != what:
            self.note(what)

    def note(self, what: str) -> None:
        now = time.perf_counter()
        if self.phases:
            self.phases[-1] = (self.phases[-1][0], now - self._last)
        self._last = now
        self.phases.append((what, 0.0))

    def _sample(self) -> None:
        while self._running:
            status = Path("/proc/self/status").read_text()
            self.host = max(self.host, int(status.split("RssAnon:")[1].split()[0]) * 1024)
            time.sleep(0.02)

    def row(self, what: str) -> str:
        phases = ", ".join(f"{name} {taken:.1f}" for name, taken in self.phases[:-1])
        return f"| {what} | {self.seconds:.1f} | {self.host / 1e9:.1f} | {self.device / 1e9:.1f} | {phases} |"


def pipeline(layers: int, device: str, presets: Sequence[str]) -> None:
    """A pair from page cache to archive, to a directory, and onto a resident base."""
    threads = len(os.sched_getaffinity(0))
    resources: dict[str, Any] = {"device": device, "threads": threads, "memory": 16 << 30}
    with tempfile.TemporaryDirectory() as folder:
        base, tuned = Path(folder) / "base", Path(folder) / "tuned"
        weights = write_pair(Path(folder), layers)
        print(f"{weights / 1e9:.2f} G weights, {threads} threads, working set of 16 GiB, device {device}\n")
        print("| operation | seconds | host memory GB | GPU memory GB | of which, in seconds |\n|---|---|---|---|---|")
        for preset in presets:
            archive, out = Path(folder) / f"{preset}.ddct", Path(folder) / preset
            with Watch() as watch:
                pack(base, tuned, archive, preset=preset, cache=False, progress=watch.progress, **resources)
            print(watch.row(f"pack {preset}"), flush=True)
            with Watch() as watch:
                unpack(archive, base, out, progress=watch.progress, **resources)
            print(watch.row(f"unpack {preset}, {archive.stat().st_size / 1e9:.2f} GB"), flush=True)
            shutil.rmtree(out)
        torch.cuda.empty_cache()
        print("\n| onto the GPU | seconds |\n|---|---|")
        model = spread(load_file(base / "model.safetensors", device="cuda:0"), device)
        for preset in presets:
            swaps(model, Path(folder) / f"{preset}.ddct", preset)
        print(f"| most that torch held of a GPU, in GB | {most_held() / 1e9:.1f} |")
        if "balanced" in presets:
            few_cores(model, Path(folder) / "balanced.ddct")
        loads(tuned / "model.safetensors", Path(folder) / f"{presets[-1]}.ddct")


def spread(model: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    """The model on the devices of that name, the first layers on the first."""
    count = torch.cuda.device_count() if device == "cuda" else 1
    names = sorted(model, key=lambda name: int(name.split(".")[2]) if ".layers." in name else -1)
    for place, name in enumerate(names):
        model[name] = model[name].to(torch.device("cuda", place * count // len(names)))
    return model


def few_cores(model: Mapping[str, torch.Tensor], path: Path) -> None:
    """Swaps with fewer of the host's cores, which decompress themselves or let nvCOMP do it."""
    if find_spec("nvidia") is None or find_spec("nvidia.libnvcomp") is None:
        print("| decompressing on the GPU | skipped: no nvCOMP (ddct[nvcomp]) |")
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with open_archive(path) as archive:
        timed("comparing the SHA-256 of the archive", lambda: archive.authenticate(digest))
        for count in sorted({len(os.sched_getaffinity(0)), 8, 4, 2, 1}, reverse=True):
            for where in ("host", "gpu"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                with cores(count):
                    timed(
                        f"swap, balanced, {count} cores, decompressed on the {where}",
                        partial(apply, model, archive, check_base=False, verify=False, decompress=where),
                        lambda applied: applied.revert(),
                    )
        print(f"| most that torch held of a GPU, in GB, decompressing there | {most_held() / 1e9:.1f} |")


def most_held() -> int:
    """Of the memory of one device, by torch, since the peaks were last forgotten."""
    return max(torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count()))


@contextmanager
def cores(count: int) -> Iterator[None]:
    """This thread, and those that it starts, on so many cores."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)
