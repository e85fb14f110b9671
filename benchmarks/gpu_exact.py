"""What the exact codec reaches on a GPU; a part of ``gpu.py``, which runs it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from ddct_format.backends.cuda import CudaBackend
from ddct_format.backends.cuda.ulp_decode import decode_ulp
from ddct_format.backends.cuda.ulp_elements import Grouping
from ddct_format.backends.cuda.ulp_encode import count_symbols, scatter_symbols
from ddct_format.backends.encoder import Band, UlpCoding, UlpStreams
from ddct_format.codec.ulp import MAX_BOUND, UlpParams
from ddct_format.encode.exact import Kinds, encode_exact, plan_exact
from ddct_format.encode.pair import TensorData
from ddct_format.encode.workspace import Workspace

__all__ = ["exact", "time_calls"]

Bytes = npt.NDArray[np.uint8]

KINDS = {"no keys": (False, False), "rows and columns with keys": (True, True)}


def device_seconds(calls: list[Callable[[], object]], repeats: int = 5) -> float:
    """Median seconds of a call between two events of the device: what it waits for on the host counts."""
    times = []
    for number in range((repeats + 1) * len(calls)):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[number % len(calls)]()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times[len(calls) :])


def exact(copy: float) -> None:
    """Kernels on resident data, then the backend's calls on a band."""
    print("| exact layer | weights | bytes/weight | Gweights/s | TB/s | of copy |\n|---|---|---|---|---|---|")
    backend = CudaBackend(torch.device("cuda", 0))
    for rows, cols in ((4096, 4096), (8192, 8192), (28672, 8192)):
        for name, kinds in KINDS.items():
            for what, size, seconds in measure(backend, rows, cols, kinds):
                weights = rows * cols
                print(
                    f"| {what}, {name} | {weights / 1e6:.0f} M | {size:.2f} | {weights / seconds / 1e9:.0f} "
                    f"| {size * weights / seconds / 1e12:.2f} | {size * weights / seconds / copy:.2f} |",
                    flush=True,
                )
        torch.cuda.empty_cache()
    print()
    exact_calls(backend)


def encoded(
    backend: CudaBackend, before: Bytes, after: Bytes, cols: int, kinds: Kinds
) -> tuple[UlpParams, list[Bytes]]:
    """Parameters and sections of the layer between two tensors of BF16."""
    tensors = [TensorData("BF16", (data.size // 2,), data) for data in (before, after)]
    return encode_exact(*tensors, cols, backend, plan=plan_exact(*tensors, cols, backend, Workspace(), kinds=kinds))


def measure(backend: CudaBackend, rows: int, cols: int, kinds: Kinds) -> Iterator[tuple[str, float, float]]:
    """What was done to resident data, bytes that must move for each weight, and seconds."""
    weights = rows * cols
    base = (torch.randn(weights, device="cuda") * 0.02).bfloat16()
    target = (base.float() + torch.randn(weights, device="cuda") * 2e-4).bfloat16()
    before, after = (tensor.view(torch.uint8).cpu().numpy() for tensor in (base, target))
    params, sections = encoded(backend, before, after, cols, kinds)
    payload = np.concatenate(sections)
    uploaded, out = torch.from_numpy(payload).to("cuda"), torch.empty_like(base)
    bases = [base, *(base.clone() for _ in range(2))]
    taken = device_seconds([partial(decode_ulp, params, payload, uploaded, one, "BF16", out) for one in bases])
    if not torch.equal(out.view(torch.int16), target.view(torch.int16)):
        raise RuntimeError("decoded to other bytes")
    groups = len(params.bounds) + 1
    yield f"decode, {groups} groups", payload.size / weights + 4, taken
    group_of = torch.from_numpy(params.group_table()).to("cuda")
    rows_at, cols_at = (torch.from_numpy(part).to("cuda") if part.size else None for part in sections[:2])
    groupings = [Grouping(one.view(torch.int16), "BF16", cols, rows_at, cols_at, group_of, groups) for one in bases]
    values = target.view(torch.int16)
    yield "count symbols", 4, device_seconds([partial(count_symbols, one, values, 0, 3) for one in groupings])
    yield "scatter symbols", 5, device_seconds([partial(scatter_symbols, one, values, 0, 3) for one in groupings])


def exact_calls(backend: CudaBackend) -> None:
    """The backend's calls: from host memory, and back to it."""
    rows, cols = 1024, 8192
    weights = rows * cols
    base = (torch.randn(weights) * 0.02).bfloat16()
    target = (base.float() + torch.randn(weights) * 2e-4).bfloat16()
    before, after = (tensor.view(torch.uint8).numpy() for tensor in (base, target))
    band, none = Band(before, "BF16", after, "BF16", cols), np.empty(0, dtype=np.uint8)
    coding = UlpCoding(0, none, none)
    params, sections = encoded(backend, before, after, cols, (False, False))
    payload, out = np.concatenate(sections), np.empty_like(before)
    counts = np.zeros((MAX_BOUND + 1, 256), dtype=np.int64)
    backend.count_ulp(band, coding, counts)
    group_of, by_group = params.group_table(), np.zeros((256, 256), dtype=np.int64)
    np.add.at(by_group, group_of, counts)
    sizes, bits = by_group.sum(axis=1), by_group @ params.extra_bits()
    symbols, extra = np.empty(weights, dtype=np.uint8), np.zeros(-(-int(bits.sum()) // 8), dtype=np.uint8)

    def scatter() -> None:
        streams = UlpStreams(group_of, symbols, np.cumsum(sizes) - sizes, extra, np.cumsum(bits) - bits)
        backend.scatter_ulp(band, coding, streams)

    work: dict[str, Callable[[], object]] = {
        "count symbols": lambda: backend.count_ulp(band, coding, counts),
        "scatter symbols": scatter,
        "weighted sizes of rows": lambda: backend.ulp_row_sizes(band, np.ones(cols, dtype=np.float32)),
        "decode": lambda: list(backend.apply_ulp_bands(params, payload, before, "BF16", out)),
    }
    time_calls("exact layer, from and to host memory", work, weights)
    if not np.array_equal(out, after):
        raise RuntimeError("decoded to other bytes")


def time_calls(title: str, work: Mapping[str, Callable[[], object]], weights: int) -> None:
    """Print a table of the least time of eight calls each, by the host's clock."""
    print(f"| {title} | weights | ms | Gweights/s |\n|---|---|---|---|")
    for name, call in work.items():
        times = []
        for _ in range(8):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        best = min(times)
        print(f"| {name} | {weights / 1e6:.0f} M | {best * 1e3:.1f} | {weights / best / 1e9:.2f} |", flush=True)
