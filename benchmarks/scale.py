"""Models as large as they get: memory of packing and unpacking 70B shapes, and the time to open 100,000 tensors.

    python benchmarks/scale.py WORK [--part 16] [--memory 1G] [--preset balanced] [--layers 80] [--moe 100000]

The pair has the tensors of Llama 3 70B: all 723 names, the two of 128256 x 8192 in full, and 1/PART of the rows of all
others; with --part 1 it is the whole model, of 141 GB, and unpacking needs as much disk. The files are sparse: only the
embedding, whose delta is noise, and the norms have data; the rest are holes, which read as zeros and are kept from the
base. Every command runs in a process of its own, whose largest resident set is printed, mapped
pages included; the same for a pair of a few kB is what Python and the libraries take.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddct_format import open_archive
from ddct_format.codec.dctq import DctqParams
from ddct_format.container.records import Layer, Metadata, ShardRecord, TensorRecord, target_ids
from ddct_format.container.writer import ArchiveWriter

__all__ = ["main", "make_sparse_pair", "measure"]

HIDDEN, INNER, KEYS, VOCABULARY = 8192, 28672, 1024, 128256
_BLOCK = 1 << 22
_RUNNER = """
import os, subprocess, sys, time
started = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.monotonic() - started, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A child's largest resident set is at least that of its parent: so the parent is one that has imported little."""

_WITH_DATA = ("a.weight", "model.embed_tokens.weight")
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    """Make, pack, verify and unpack the pair; then make and open the archive of many tensors. Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("work", type=Path, help="a directory for all files; made, and removed again")
    parser.add_argument("--part", type=int, default=16)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--moe", type=int, default=100_000, metavar="TENSORS")
    arguments = parser.parse_args()
    arguments.work.mkdir()
    try:
        _pair(arguments)
        _many_tensors(arguments.work / "moe.ddct", arguments.moe)
    finally:
        shutil.rmtree(arguments.work)


def _pair(arguments: argparse.Namespace) -> None:
    tiny: Shapes = {"a.weight": (64, 64)}
    large = _shapes(arguments.part, arguments.layers, arguments.vocabulary)
    print("| pair | bytes of tensors | largest tensor | command | seconds | largest resident set, MiB |")
    print("|---|---|---|---|---|---|")
    for label, shapes in (("tiny", tiny), ("70B", large)):
        folder = arguments.work / label
        size, largest = make_sparse_pair(folder, shapes)
        base, tuned, archive, out = (folder / name for name in ("base", "tuned", "t.ddct", "out"))
        options = ("--memory", arguments.memory, "--no-cache")
        commands = {
            "pack": ("pack", base, tuned, archive, "--preset", arguments.preset, *options),
            "verify": ("verify", archive, "--base", base, *options[:2]),
            "unpack": ("unpack", archive, "--base", base, out, *options[:2]),
        }
        for name, command in commands.items():
            seconds, resident = measure([sys.executable, "-m", "ddct_format", *map(str, command)])
            print(f"| {label} | {size} | {largest} | {name} | {seconds:.1f} | {resident / 2**20:.0f} |", flush=True)


def _shapes(part: int, layers: int, vocabulary: int) -> Shapes:
    roles = {
        "mlp.down_proj": (HIDDEN, INNER),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
    }
    shapes: Shapes = dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight"), (vocabulary, HIDDEN))
    shapes["model.norm.weight"] = (HIDDEN,)
    for number in range(layers):
        for role, (rows, cols) in roles.items():
            shapes[f"model.layers.{number}.{role}.weight"] = (rows // part, cols)
        for role in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{number}.{role}.weight"] = (HIDDEN,)
    return shapes


def make_sparse_pair(folder: Path, shapes: Shapes) -> tuple[int, int]:
    """Write base and tuned below ``folder``, a shard for each layer and each other tensor.

    Returns:
        Bytes of one model's tensors, and of the largest tensor.
    """
    shards: dict[str, list[str]] = {}
    for name in sorted(shapes):
        parts = name.split(".")
        shards.setdefault(f"layer-{int(parts[2]):03}" if parts[1:2] == ["layers"] else parts[-2], []).append(name)
    for model in ("base", "tuned"):
        (folder / model).mkdir(parents=True)
        for shard, names in shards.items():
            _write_sparse(folder / model / f"{shard}.safetensors", {name: shapes[name] for name in names}, model)
    sizes = [2 * int(np.prod(shape)) for shape in shapes.values()]
    return sum(sizes), max(sizes)


def _write_sparse(path: Path, shapes: Shapes, model: str) -> None:
    """A safetensors file with holes in the place of most matrices."""
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    base = (random.standard_normal(_BLOCK, dtype=np.float32) * 0.02).view(np.uint32)
    block = base
    if model == "tuned":
        delta = random.standard_normal(_BLOCK, dtype=np.float32) * 0.0004
        block = (base.view(np.float32) + delta).view(np.uint32)
    data = (block >> 16).astype("<u2").tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + position)
        for name, shape in shapes.items():
            if len(shape) == 2 and name not in _WITH_DATA:
                continue
            first, end = header[name]["data_offsets"]
            file.seek(start + first)
            for offset in range(first, end, len(data)):
                file.write(data[: min(len(data), end - offset)])


def measure(command: Sequence[str]) -> tuple[float, int]:
    """Seconds and largest resident set, in bytes, of a process."""
    result = subprocess.run([sys.executable, "-c", _RUNNER, *command], capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {result.stderr[-500:]}")
    seconds, resident = result.stdout.split()
    return float(seconds), int(resident) * 1024


def _many_tensors(path: Path, count: int) -> None:
    """Write and open an archive of small experts, with the metadata that ``balanced`` writes."""
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2 * count)]
    params: dict[str, object] = {
        "cols": 64,
        "patch": 16,
        "transform": "hadamard",
        "quantiser": "levels",
        "classes": [[0], [0, 18, -18], [0, 18, -18]],
        "sparse": [2],
        "rank": 2,
        "row_keys": True,
        "col_keys": True,
    }
    size, _ = DctqParams.parse(params, 4096).size_bounds()
    tensors = tuple(
        TensorRecord(
            f"model.layers.{number // 1600:03}.mlp.experts.{number % 1600:04}.down_proj.weight",
            "BF16",
            (64, 64),
            0,
            "add",
            base=digests[2 * number],
            layers=(Layer("dctq.v1", params, size, digests[2 * number + 1]),),
            error=0.2345,
        )
        for number in range(count)
    )
    ids = target_ids(tensors)
    with ArchiveWriter(path) as writer:
        payload = writer.compress_payload([bytes(size)])
        for _ in tensors:
            writer.append(0, payload)
        shards = (ShardRecord("model.safetensors"),)
        metadata = Metadata("benchmark", writer.chunk_size, ids[0], {}, ids, ids[0], shards, (), tensors)
        writer.seal(metadata)
    started, processor = time.monotonic(), time.process_time()
    with open_archive(path) as archive:
        opened = time.monotonic() - started, time.process_time() - processor
        raw = archive.reader.preamble.metadata_raw_size
    inspected, resident = measure([sys.executable, "-m", "ddct_format", "inspect", str(path)])
    print(
        f"\n{count} tensors, {raw} bytes of metadata: opened in {opened[0]:.2f} s ({opened[1]:.2f} s of processor "
        f"time), inspected in {inspected:.2f} s from start to end, {resident / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
