"""Lossless archives against other ways to store a fine-tune bit for bit, in file bytes over all tensors.

    python benchmarks/exact.py ZOO [--pair BASE:FINETUNED ...] [--peers-python PYTHON]

Peers: zstd -3; XOR with the base, then zstd -1; the same split into byte planes, then zstd -3. ZipNN and bigsmall are
asked through another interpreter that has them (``--peers-python``), so that they are no dependency; what cannot run
is listed with the reason. Every archive is unpacked and compared with the fine-tune byte for byte.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from ddct_format import open_archive, open_checkpoint, pack, unpack

__all__ = ["main"]

_PEERS = """
import json, os, sys, tempfile
os.environ["BIGSMALL_DISABLE_VERSION_CHECK"] = "1"
def zipnn(base, tuned, plain, delta):
    from zipnn import ZipNN
    stored = lambda data: len(ZipNN(input_format="byte", bytearray_dtype="bfloat16").compress(data))
    return {"ZipNN": stored(bytearray(plain)), "XOR + ZipNN": stored(bytearray(delta))}
def bigsmall(base, tuned, plain, delta):
    import bigsmall
    with tempfile.TemporaryDirectory() as folder:
        bigsmall.compress_delta(tuned, base, folder + "/delta", force_delta=True)
        bigsmall.compress(tuned, folder + "/plain")
        return {"bigsmall delta": os.path.getsize(folder + "/delta"), "bigsmall": os.path.getsize(folder + "/plain")}
if __name__ == "__main__":
    base, tuned, plain, delta = sys.argv[2:6]
    function = {"zipnn": zipnn, "bigsmall": bigsmall}[sys.argv[1]]
    out = function(base, tuned, open(plain, "rb").read(), open(delta, "rb").read())
    print("\\n" + json.dumps(out))
"""
_DEFAULT_PAIRS = ("base-lm:math", "base-vit:vit-mnist")
Bytes = npt.NDArray[np.uint8]


def main() -> None:
    """Measure and print one Markdown table for each pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--pair", action="append", metavar="BASE:FINETUNED")
    parser.add_argument("--peers-python", help="interpreter with zipnn and bigsmall installed")
    arguments = parser.parse_args()
    for pair in arguments.pair or _DEFAULT_PAIRS:
        base, tuned = (arguments.zoo / name for name in pair.split(":"))
        _report(pair, base, tuned, arguments.peers_python)


def _report(pair: str, base: Path, tuned: Path, peers_python: str | None) -> None:
    plain, delta = _tensor_bytes(base, tuned)
    sizes = {
        "zstd -3": _zstd(plain, 3),
        "XOR + zstd -1": _zstd(delta, 1),
        "byte-split XOR + zstd -3": sum(_zstd(delta[plane::2], 3) for plane in (0, 1)),
    }
    missing: dict[str, str] = {}
    for peer in ("zipnn", "bigsmall"):
        outcome = _ask_peer(peers_python, peer, base, tuned, plain, delta)
        if isinstance(outcome, str):
            missing[peer] = outcome
        else:
            sizes.update(outcome)
    best = min(sizes.values())
    times: dict[str, tuple[float, float]] = {}
    for label, preset, exact in (("ddct exact", "exact", False), ("ddct paper + exact layer", "paper", True)):
        sizes[label], *taken = _pack(base, tuned, preset, exact)
        times[label] = (taken[0], taken[1])
    print(f"\n{pair}: {plain.size} bytes of tensors\n")
    print("| | bytes | of the tensors | of the best peer | pack, unpack |\n|---|---|---|---|---|")
    for label, size in sizes.items():
        took = "pack {:.0f} s, unpack {:.0f} s".format(*times[label]) if label in times else ""
        print(f"| {label} | {size} | {size / plain.size:.3f} | {size / best:.3f} | {took} |")
    for peer, reason in missing.items():
        print(f"\n{peer} did not run: {reason}")
    sys.stdout.flush()


def _tensor_bytes(base: Path, tuned: Path) -> tuple[Bytes, Bytes]:
    """All bytes of the fine-tune's tensors, and their XOR with the base's (with zero where there is no counterpart)."""
    plain, delta = [], []
    with open_checkpoint(base) as base_model, open_checkpoint(tuned) as tuned_model:
        for name, info in tuned_model.tensors.items():
            data = np.frombuffer(tuned_model.read(name), dtype=np.uint8)
            found = base_model.tensors.get(name)
            same = found is not None and (found.dtype, found.shape) == (info.dtype, info.shape)
            plain.append(data.copy())
            delta.append(data ^ np.frombuffer(base_model.read(name), dtype=np.uint8) if same else data.copy())
    return np.concatenate(plain), np.concatenate(delta)


def _zstd(data: Bytes, level: int) -> int:
    return len(zstandard.ZstdCompressor(level=level).compress(np.ascontiguousarray(data).data))


def _ask_peer(
    python: str | None, peer: str, base: Path, tuned: Path, plain: Bytes, delta: Bytes
) -> dict[str, int] | str:
    """Bytes by label, or why there are none."""
    if python is None:
        return "no --peers-python was given"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "peer.py")
        script.write_text(_PEERS)
        for name, data in (("plain", plain), ("delta", delta)):
            data.tofile(Path(folder, name))
        models = [str(path / "model.safetensors") for path in (base, tuned)]
        command = [python, str(script), peer, *models, f"{folder}/plain", f"{folder}/delta"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return result.stderr.strip().splitlines()[-1]
    sizes: dict[str, int] = json.loads(result.stdout.strip().splitlines()[-1])
    return sizes


def _pack(base: Path, tuned: Path, preset: str, exact: bool) -> tuple[int, float, float]:
    """File bytes without the side files, and the seconds that packing and unpacking took; unpacked and compared."""
    with tempfile.TemporaryDirectory() as folder:
        archive, out = Path(folder, "t.ddct"), Path(folder, "out")
        started = time.monotonic()
        size = pack(base, tuned, archive, preset=preset, exact=exact, verify=False).file_size
        packed = time.monotonic()
        unpack(archive, base, out, exact=True)
        unpacked = time.monotonic()
        for path in tuned.glob("*.safetensors"):
            if path.read_bytes() != (out / path.name).read_bytes():
                raise SystemExit(f"{path} came back different")
        with open_archive(archive) as opened:
            reader = opened.reader
            tensors = sum(reader.stored_size(name) for name in opened.tensors)
            size = reader.preamble.chunks_offset + tensors
    return size, packed - started, unpacked - packed


if __name__ == "__main__":
    main()
