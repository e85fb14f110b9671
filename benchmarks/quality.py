"""What each preset costs and keeps on real models, against other data-free ways to store a fine-tune.

Usage: python benchmarks/quality.py [ZOO] [--pair NAME ...] [--row NAME ...] [--math-limit N]

ZOO (or $DDCT_ZOO) is a folder of model directories with an ``evaluate.py MODEL_DIR TASK [--limit N]`` that prints a
JSON line with ``value``. Prints one table per pair. Bits per weight count every byte of the archive but those of side
files. Peers are written as model directories, and their bytes counted as they would have to be stored: signs as bits,
scales as float32, factors as int8, and tensors that they do not treat as zstd-compressed bytes. Low rank is given the
bytes of a preset: what its untreated tensors take comes off first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import zstandard
from safetensors.torch import load_file, save_file

from ddct_format import pack, unpack

PAIRS = {"math": ("base-lm", "math"), "vit-mnist": ("base-vit", "mnist")}
"""Fine-tune: base, task."""
PRESETS = ("tiny", "small", "balanced", "high", "paper", "paper-mix")

Delta = torch.Tensor
Peer = Callable[[Delta, float], tuple[Delta, int]]
"""A delta [rows, cols] and the bits per weight that it may take -> what is decoded of it, and its bytes."""


def bitdelta_published(delta: Delta, _: float) -> tuple[Delta, int]:
    """Liu et al. 2024: signs times the mean absolute delta of the matrix, without the distillation of the scales."""
    return delta.sign() * delta.abs().mean(), delta.numel() // 8 + 4


def bitdelta_unbiased(delta: Delta, _: float) -> tuple[Delta, int]:
    """The same with the gain that makes the decoded delta project onto the true one with coefficient 1."""
    return delta.sign() * (delta.square().sum() / delta.abs().sum()), delta.numel() // 8 + 4


def sign_per_row(delta: Delta, _: float) -> tuple[Delta, int]:
    """Signs times the mean absolute delta of each row."""
    return delta.sign() * delta.abs().mean(dim=1, keepdim=True), delta.numel() // 8 + 4 * len(delta)


def low_rank(delta: Delta, bits: float) -> tuple[Delta, int]:
    """Truncated singular value decomposition with int8 factors, of the rank that the bits allow; of one at least."""
    rank = max(1, int(bits * delta.numel() / (8 * sum(delta.shape) + 64)))
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    left = left[:, :rank] * values[:rank]
    sides, size = [], 0
    for side in (left, right[:rank].T):
        step = side.abs().amax(dim=0) / 127
        sides.append((side / step).round() * step)
        size += side.numel() + 4 * side.shape[1]
    return sides[0] @ sides[1].T, size


PEERS: dict[str, tuple[Peer, float]] = {
    "BitDelta, published gain": (bitdelta_published, 1.0),
    "BitDelta, unbiased gain": (bitdelta_unbiased, 1.0),
    "sign, scale per row": (sign_per_row, 1.0),
    "low rank at the bytes of tiny": (low_rank, 0.25),
    "low rank at the bytes of small": (low_rank, 0.5),
    "low rank at the bytes of balanced": (low_rank, 1.0),
    "low rank at the bytes of high": (low_rank, 2.0),
}
"""Schemes, and the bits per weight over all tensors that they may take if they can choose."""


@dataclass(frozen=True)
class Row:
    name: str
    bits: float
    directory: Path
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", nargs="?", type=Path, default=os.environ.get("DDCT_ZOO"))
    parser.add_argument("--pair", action="append", choices=list(PAIRS), help="all by default; may be repeated")
    parser.add_argument("--row", action="append", choices=[*PRESETS, *PEERS], help="all by default; may be repeated")
    parser.add_argument("--math-limit", type=int, default=300)
    arguments = parser.parse_args()
    if arguments.zoo is None or not Path(arguments.zoo).is_dir():
        print("skipped: no collection of real models; give its folder or set DDCT_ZOO")
        return
    zoo = Path(arguments.zoo)
    for tuned in arguments.pair or PAIRS:
        base, task = PAIRS[tuned]
        limit = arguments.math_limit if task == "math" else 0
        print(f"\n{tuned} on {base}, task {task}\n")
        print("| scheme | bits per weight | error | cosine | task metric | nll | seconds |")
        print("|---|---|---|---|---|---|---|", flush=True)
        print(f"| fine-tune | 16 | 0 | 1 | {evaluate(zoo, zoo / tuned, task, limit)} | |", flush=True)
        for row in rows(zoo, base, tuned, arguments.row or [*PRESETS, *PEERS]):
            error, cosine = compare(zoo / base, zoo / tuned, row.directory)
            score = evaluate(zoo, row.directory, task, limit)
            cells = (row.name, f"{row.bits:.3f}", f"{error:.3f}", f"{cosine:.3f}", score, f"{row.seconds:.1f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def rows(zoo: Path, base: str, tuned: str, names: list[str]) -> Iterator[Row]:
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            out = Path(folder) / "model"
            if name in PEERS:
                bits = apply_peer(zoo / base, zoo / tuned, out, *PEERS[name])
            else:
                report = pack(zoo / base, zoo / tuned, Path(folder) / "model.ddct", preset=name)
                bits = report.tensor_bits_per_weight
                unpack(Path(folder) / "model.ddct", zoo / base, out)
            yield Row(name, bits, out, time.monotonic() - started)


def apply_peer(base: Path, tuned: Path, out: Path, peer: Peer, bits: float) -> float:
    """Write the model that a peer would give back; bits per weight."""
    shutil.copytree(tuned, out)
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    parameters = sum(tensor.numel() for tensor in after.values())
    treated = {name for name, tensor in after.items() if min(_matrix(tensor).shape) >= 16}
    decoded = {name: tensor for name, tensor in after.items() if name not in treated}
    size = sum(
        len(zstandard.compress(tensor.contiguous().view(torch.uint8).numpy().tobytes())) for tensor in decoded.values()
    )
    allowed = (bits * parameters - 8 * size) / sum(after[name].numel() for name in treated)
    for name in treated:
        delta = after[name].float() - before[name].float()
        change, stored = peer(_matrix(delta), allowed)
        decoded[name] = (before[name].float() + change.reshape(delta.shape)).to(after[name].dtype)
        size += stored
    (out / "model.safetensors").chmod(0o644)
    out.chmod(0o755)
    (out / "model.safetensors").unlink()
    save_file(decoded, out / "model.safetensors", {"format": "pt"})
    return 8 * size / parameters


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.reshape(1, -1)


def compare(base: Path, tuned: Path, decoded: Path) -> tuple[float, float]:
    """Relative squared error and cosine of the delta, over all tensors."""
    b, t, d = (load_file(path / "model.safetensors") for path in (base, tuned, decoded))
    noise = energy = product = length = 0.0
    for name in t:
        true, found = t[name].double() - b[name].double(), d[name].double() - b[name].double()
        noise += float((true - found).square().sum())
        energy += float(true.square().sum())
        length += float(found.square().sum())
        product += float((true * found).sum())
    return noise / energy, product / (energy * length) ** 0.5 if length else 0.0


def evaluate(zoo: Path, model: Path, task: str, limit: int) -> str:
    """Two cells: the metric, and the loss on the reference answers."""
    command = [sys.executable, str(zoo / "evaluate.py"), str(model), task, *(["--limit", str(limit)] if limit else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(result.stdout.splitlines()[-1])
    return f"{measured['value']:.3f} | {measured['nll']:.3f}"


if __name__ == "__main__":
    main()
