"""What the GPU path reaches, as shares of the copy bandwidth measured in the same run; prints Markdown tables.

Usage: python benchmarks/gpu.py [kernels] [encode] [mixes] [exact] [swap] [pipeline] [options, see --help]

Bytes are those that must move: packed payload in, base in, result out into a second buffer (decode); base and fine-tune
in, symbols out in four bits (``balanced``) or two (``paper``), and what is told of each patch (encode). ``decode`` is
the decoding kernel alone; ``all`` adds the class index, the expansion of symbols and the low-rank factors. Times of
kernels are medians of CUDA-graph replays, so that they hold no launch gaps.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import triton
from gpu_exact import exact, time_calls
from gpu_pipeline import NORM, loads, model_7b, pipeline, swaps
from safetensors.torch import save_file

from ddct_format.backends.cuda import CudaBackend
from ddct_format.backends.cuda.digest import tensor_digests
from ddct_format.backends.cuda.fused import FusedPlan
from ddct_format.backends.cuda.fused_encoder import Operands, encode_affine, encode_levels
from ddct_format.backends.cuda.layer import LayerPlan, plan_layer
from ddct_format.backends.encoder import Band, ResidualPlan
from ddct_format.codec.dctq import DctqParams, StoredPayload, split_payload
from ddct_format.codec.patches import PatchGrid
from ddct_format.codec.symbols import symbols_per_byte
from ddct_format.container.digest import model_id
from ddct_format.container.records import Layer, Metadata, ShardRecord, TensorRecord, target_ids
from ddct_format.container.writer import ArchiveWriter

LEVELS = ((0,), (0, 18, -18), (0, 18, -18))
SHARES = (0.2, 0.5, 0.3)
"""Patches of nothing, dense ternary and sparse ternary symbols: what ``balanced`` writes at its best."""
FULL_LEVELS = ((0,), (0, 14, -14), (0, 14, -14, 29, -29))
FULL_SHARES = (0.2, 0.5, 0.3)
"""All that ``balanced`` uses on real models: sparse classes, 16 low-rank terms, rows and columns by key."""
DENSITY = 0.04
"""Share of the sparse classes' symbols that are not 0."""

KINDS = ("balanced", "balanced rank 16", "balanced full", "paper")

LLAMA = {
    "7B": (
        [(4096, 4096)] * 128 + [(11008, 4096)] * 64 + [(4096, 11008)] * 32 + [(32000, 4096)] * 2
    ),
    "70B": (
        [(8192, 8192)] * 160 + [(1024, 8192)] * 160 + [(28672, 8192)] * 160 + [(8192, 28672)] * 80 + [(32000, 8192)] * 2
    ),
}  # fmt: skip


def synthetic_layer(kind: str, rows: int, cols: int, seed: int = 0) -> tuple[DctqParams, StoredPayload]:
    """A random valid layer of one of KINDS."""
    random = np.random.default_rng(seed)
    grid = PatchGrid(rows, cols, 16)
    parts: list[npt.NDArray[np.uint8]] = []

    def dense(count: int, alphabet: int, per_byte: int) -> npt.NDArray[np.uint8]:
        packed = random.integers(
            0, alphabet**per_byte, -(-count // per_byte), dtype=np.uint8 if alphabet**per_byte < 256 else np.uint16
        ).astype(np.uint8)
        if count % per_byte:
            packed[-1] %= alphabet ** (count % per_byte)
        return packed

    if kind == "paper":
        params = DctqParams(grid, "dct", "affine", ((0,), (0, 1, 2, 3)))
        class_map = (random.random(grid.count) < 0.5).astype(np.uint8)
        coded = int(class_map.sum())
        ranges = np.stack([random.normal(size=coded), np.abs(random.normal(size=coded))]).astype("<f2")
        parts = [np.float32([1e-6]).view(np.uint8), class_map]
        parts += [np.ascontiguousarray(half) for row in ranges for half in row.view(np.uint8).reshape(-1, 2).T]
        parts.append(dense(coded * 256, 4, 4))
        return params, split_payload(params, np.concatenate(parts))

    def sparse(count: int) -> npt.NDArray[np.uint8]:
        runs = random.geometric(DENSITY, int(count * DENSITY)) - 1
        long_runs = runs // 255
        stored = np.full(int((long_runs + 1).sum()), 255, dtype=np.uint8)
        stored[np.cumsum(long_runs + 1) - 1] = runs % 255
        reach = np.cumsum(stored.astype(np.int64) + (stored != 255))
        return stored[: np.searchsorted(reach, count, side="right")]

    full = kind == "balanced full"
    rank = 16 if full or kind.endswith("rank 16") else 0
    levels = FULL_LEVELS if full else LEVELS
    params = DctqParams(grid, "dct", "levels", levels, (1, 2) if full else (2,), rank, full, full)
    class_map = random.choice(3, grid.count, p=FULL_SHARES if full else SHARES).astype(np.uint8)
    counts = np.bincount(class_map, minlength=3) * 256
    parts.append(np.array([0, 1e-7, 1e-7] + [1e-9] * (rank > 0), dtype="<f4").view(np.uint8))
    if rank:
        parts.append((20000 * 0.85 ** np.arange(rank)).astype("<u2").view(np.uint8))
    if full:
        parts += [random.binomial(6, 0.4, n).astype(np.uint8) for n in (rows, cols)]
    if rank:
        parts += [random.integers(0, 256, n * rank).astype(np.uint8) for n in (rows, cols)]
    runs = [sparse(int(counts[number])) for number in params.sparse]
    parts += [class_map, np.array([run.size for run in runs], dtype="<u4").view(np.uint8)]
    if not full:
        parts.append(dense(int(counts[1]), 3, 5))
    for number, run in zip(params.sparse, runs, strict=True):
        alphabet = len(levels[number]) - 1
        parts += [run, dense(int((run != 255).sum()), alphabet, symbols_per_byte(alphabet))]
    return params, split_payload(params, np.concatenate(parts))


def synthetic_vector(size: int) -> tuple[DctqParams, StoredPayload]:
    """A random valid layer of a vector."""
    levels = (0, *(sign * level for level in range(1, 16) for sign in (1, -1)))
    params = DctqParams(PatchGrid(size // 8, 8, 8), "none", "levels", (levels,))
    symbols = np.random.default_rng(0).integers(0, len(levels), size, dtype=np.uint8)
    return params, split_payload(params, np.concatenate([np.float32([1e-4]).view(np.uint8), symbols]))


def upload(plan: LayerPlan | FusedPlan) -> torch.Tensor:
    head = np.empty(plan.upload_size, dtype=np.uint8)
    plan.write(head)
    buffer = torch.empty(plan.size, dtype=torch.uint8, device="cuda")
    buffer[: plan.upload_size].copy_(torch.from_numpy(head))
    return buffer


def seconds(calls: Sequence[Callable[[], object]], repeats: int = 10) -> float:
    """Median seconds of one call; the calls, which should touch different memory, are one CUDA graph."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3 / len(calls))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes read plus written per second of device-to-device copies of 2 GiB; the median of ten."""
    source, target = (torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_() for _ in range(2))
    times = []
    for _ in range(12):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return 2 * source.numel() / statistics.median(times[2:])


def buffers(rows: int, cols: int) -> list[torch.Tensor]:
    """Bases that together exceed the last-level cache many times."""
    copies = max(2, min(8, (1 << 30) // (rows * cols * 2)))
    return [(torch.randn(rows * cols, device="cuda") * 0.05).bfloat16() for _ in range(copies)]


def measure_decode(kind: str, rows: int, cols: int) -> tuple[int, float, float]:
    """Bytes that must move, seconds of the decoding kernel, seconds with all that prepares it."""
    params, stored = synthetic_layer(kind, rows, cols)
    plan = plan_layer(params, stored, torch.device("cuda", 0))
    buffer = upload(plan)
    pairs = [(base, torch.empty_like(base)) for base in buffers(rows, cols)]
    layer = plan.build(buffer)
    alone = seconds([lambda pair=pair: layer.apply(pair[0], "BF16", pair[1], "BF16") for pair in pairs])
    whole = seconds([lambda pair=pair: plan.build(buffer).apply(pair[0], "BF16", pair[1], "BF16") for pair in pairs])
    return stored.payload.size + 4 * rows * cols, alone, whole


def kernels(copy: float) -> None:
    print(
        "| operation | weights | bytes/weight | Gweights/s | TB/s | of copy | of copy, all |\n"
        "|---|---|---|---|---|---|---|"
    )
    for kind in KINDS:
        for rows, cols in ((8192, 8192), (28672, 8192)):
            size, alone, whole = measure_decode(kind, rows, cols)
            weights = rows * cols
            print(
                f"| decode {kind} | {weights / 1e6:.0f} M | {size / weights:.2f} | {weights / alone / 1e9:.0f} "
                f"| {size / alone / 1e12:.2f} | {size / alone / copy:.2f} | {size / whole / copy:.2f} |",
                flush=True,
            )


def encode(copy: float) -> None:
    """Encoding kernels on resident data, then the backend's calls on a band."""
    print("| encode kernel | weights | bytes/weight | Gweights/s | TB/s | of copy |\n|---|---|---|---|---|---|")
    for rows, cols in ((8192, 8192), (28672, 8192)):
        weights, patches = rows * cols, rows * cols // 256
        pairs = []
        for base in buffers(rows, cols):
            target = (base.float() + torch.randn(weights, device="cuda") * 2e-4).bfloat16()
            pairs.append(Operands(base, target, "BF16", rows, cols, 1.0))
        deviation = float((pairs[0].target.float() - pairs[0].base.float()).std())
        alphabets = torch.full((patches,), 4, dtype=torch.uint8, device="cuda")
        work: dict[str, tuple[float, Callable[[Operands], object]]] = {
            f"balanced, step {step:.1f} deviations": (
                4.5 + 4 / 256,
                lambda pair, unit=65536 / (deviation * step): encode_levels(pair, unit, 0.2),
            )
            for step in (1.7, 1.0)
        }
        work["paper, 2 bits for all"] = (4.25 + 5 / 256, lambda pair, sizes=alphabets: encode_affine(pair, sizes))
        for name, (size, call) in work.items():
            taken = seconds([lambda pair=pair, call=call: call(pair) for pair in pairs])
            print(
                f"| {name} | {weights / 1e6:.0f} M | {size:.2f} | {weights / taken / 1e9:.0f} "
                f"| {size * weights / taken / 1e12:.2f} | {size * weights / taken / copy:.2f} |",
                flush=True,
            )
        encode_residual(copy, pairs[:2], 65536 / (deviation * 1.7))
        del pairs
        torch.cuda.empty_cache()
    print()
    encode_calls()


def encode_residual(copy: float, pairs: Sequence[Operands], unit: float) -> None:
    """The form that real models take, with low-rank part and column order: alone, and with what makes its residual."""
    rows, cols, rank = pairs[0].rows, pairs[0].cols, 16
    left, right = torch.randn(rows, rank, device="cuda") * 1e-5, torch.randn(rank, cols, device="cuda") * 1e-5
    order = torch.randperm(cols, device="cuda")

    def residual(pair: Operands) -> Operands:
        delta = (pair.target.float() - pair.base.float()).view(rows, cols) - left @ right
        ordered = delta[:, order].contiguous().view(-1)
        return Operands(ordered, ordered, "F32", rows, cols, 1.0)

    made = [residual(pair) for pair in pairs]
    work: dict[str, list[Callable[[], object]]] = {
        "balanced, from a float32 residual": [lambda pair=pair: encode_levels(pair, unit, 0.2) for pair in made],
        "balanced, its residual by torch, too": [
            lambda pair=pair: encode_levels(residual(pair), unit, 0.2) for pair in pairs
        ],
    }
    size = 4.5 + 4 / 256
    for name, calls in work.items():
        taken = seconds(calls)
        print(
            f"| {name} | {rows * cols / 1e6:.0f} M | {size:.2f} | {rows * cols / taken / 1e9:.0f} "
            f"| {size * rows * cols / taken / 1e12:.2f} | {size * rows * cols / taken / copy:.2f} |",
            flush=True,
        )


def encode_calls() -> None:
    """The backend's calls: from host memory, and back to it with a byte per symbol."""
    rows, cols = 2048, 8192
    random = np.random.default_rng(0)
    base = random.integers(0x3C00, 0x3D00, rows * cols, dtype=np.uint16)
    target = base + random.integers(0, 2, rows * cols, dtype=np.uint16)
    band = Band(base.view(np.uint8), "BF16", target.view(np.uint8), "BF16", cols)
    backend = CudaBackend(torch.device("cuda", 0))
    delta = backend.difference(band)
    plan = ResidualPlan(
        16, "dct", 1.0, np.empty((0, cols), dtype=np.float32), None, 65536 / (1.7 * float(delta.std())), 0.2
    )
    alphabets = np.where(random.random(rows * cols // 256) < 0.5, 4, 1).astype(np.uint8)
    work: dict[str, Callable[[], object]] = {
        "balanced, without low-rank part": lambda: backend.quantise(band, plan, np.empty((rows, 0), dtype=np.float32)),
        "paper": lambda: backend.quantise_affine(band, 16, "dct", 2.0**20, alphabets),
    }
    time_calls("backend's call, from and to host memory", work, rows * cols)


def mixes(copy: float) -> None:
    print("| model | preset | ms decode | of copy | ms all | of copy, all |\n|---|---|---|---|---|---|")
    for model, shapes in LLAMA.items():
        for kind in KINDS:
            total = alone = whole = 0.0
            for shape in sorted(set(shapes)):
                parts = [shapes.count(shape) * value for value in measure_decode(kind, *shape)]
                total, alone, whole = total + parts[0], alone + parts[1], whole + parts[2]
            print(
                f"| {model} | {kind} | {alone * 1e3:.1f} | {total / alone / copy:.2f} "
                f"| {whole * 1e3:.1f} | {total / whole / copy:.2f} |",
                flush=True,
            )


def swap(copy: float) -> None:
    """A synthetic 7B fine-tune onto a resident base, against loading all of it."""
    names, shapes = zip(*sorted(model_7b()), strict=True)
    model = {
        name: (torch.randn(shape, device="cuda") * 0.05).bfloat16() for name, shape in zip(names, shapes, strict=True)
    }
    layers = {
        shape: synthetic_vector(shape[0]) if shape == NORM else synthetic_layer("balanced", *shape)
        for shape in set(shapes)
    }
    with tempfile.TemporaryDirectory() as folder:
        archive, full = Path(folder) / "model.ddct", Path(folder) / "model.safetensors"
        before = dict(zip(names, tensor_digests([model[name] for name in names]), strict=True))
        tuned = {name: tensor.clone() for name, tensor in model.items()}
        for name, shape in zip(names, shapes, strict=True):
            plan = plan_layer(*layers[shape], torch.device("cuda", 0))
            plan.build(upload(plan)).apply(tuned[name], "BF16", tuned[name], "BF16")
        after = dict(zip(names, tensor_digests([tuned[name] for name in names]), strict=True))
        save_file(tuned, full)
        del tuned
        torch.cuda.empty_cache()
        with ArchiveWriter(archive) as writer:
            payloads = {shape: writer.compress_payload([stored.payload]) for shape, (_, stored) in layers.items()}
            records = []
            for name, shape in zip(names, shapes, strict=True):
                writer.append(0, payloads[shape])
                params, packed = layers[shape]
                layer = Layer("dctq.v1", params.as_json(), packed.payload.size, after[name])
                records.append(TensorRecord(name, "BF16", shape, 0, "add", base=before[name], layers=(layer,)))
            base_id = model_id((name, "BF16", shape, before[name]) for name, shape in zip(names, shapes, strict=True))
            exact_id = target_ids(records)[-1]
            writer.seal(
                Metadata("benchmark", writer.chunk_size, base_id, {}, (exact_id,), exact_id,
                         (ShardRecord("model.safetensors"),), (), tuple(records)), None)  # fmt: skip
        print(f"archive {archive.stat().st_size / 1e9:.2f} GB, full {full.stat().st_size / 1e9:.2f} GB\n")
        print("| operation | seconds |\n|---|---|")
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        swaps(model, archive, "balanced")
        print(
            f"| peak GPU memory in GB, base {held / 1e9:.1f} included | {torch.cuda.max_memory_allocated() / 1e9:.1f} |"
        )
        loads(full, archive)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\npeak host memory of the whole benchmark: {peak / 1e6:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["kernels", "mixes"])
    parser.add_argument("--layers", type=int, default=32, help="of the model of `pipeline`; 32 for a 7B")
    parser.add_argument("--device", default="cuda", help="of `pipeline`")
    parser.add_argument("--presets", nargs="+", default=["paper", "exact", "balanced"], help="of `pipeline`")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("skipped: no CUDA device")
    copy = copy_bandwidth()
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"Triton {triton.__version__}; `python {' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`; "
        f"copy {copy / 1e12:.2f} TB/s\n"
    )
    parts = {"kernels": kernels, "encode": encode, "mixes": mixes, "exact": exact, "swap": swap}
    for part in arguments.parts:
        if part == "pipeline":
            pipeline(arguments.layers, arguments.device, arguments.presets)
        else:
            parts[part](copy)
        print()


if __name__ == "__main__":
    main()
