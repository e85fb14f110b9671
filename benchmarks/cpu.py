"""Throughput and memory of ddct and its peers on the CPU, each in a process of its own, all on the same files.

    python benchmarks/cpu.py ZOO/base-lm ZOO/math WORK [--sizes 0.1 0.5 1.5 5] [--peers-at 1.5] [--peers-python PYTHON]

For every size a pair is made in WORK (``benchmarks/pairs.py``; left there, and used again). Seconds are those of whole
processes, start included, with the models in the page cache; what starting takes (interpreter and imports, measured by
itself) is in a column of its own. GB/s are bytes of the fine-tune's weight files over the seconds, ns the processor
time, user and system, per weight of 2 bytes: what both cores together spend, and hardly affected by who else computes.
The resident set is the largest, mapped pages included.

ddct decodes and compares what it packed, writes durably and checks every digest; no peer does. Peers run at one size,
through another interpreter that has them, so that they are no dependency; what cannot run is listed with the reason.
zstd streams from file to file. ``deltatensors`` stores a lossy sparse delta and only loads it; the others store all
bytes. ``safetensors`` loads and saves the fine-tune: the floor.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["main"]

_PEERS = """
import glob, os, sys
from pathlib import Path
os.environ["BIGSMALL_DISABLE_VERSION_CHECK"] = "1"
peer, step, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
base, tuned, stored, out = map(Path, sys.argv[4:])
stored.mkdir(exist_ok=True)
out.mkdir(exist_ok=True)
shards = sorted(tuned.glob("*.safetensors"))
if step == "start":
    shards = []
if peer.startswith("zstd"):
    import zstandard
    for shard in shards:
        if step == "pack":
            tool = zstandard.ZstdCompressor(level=int(peer.split("-")[1]), threads=threads)
            source, target, size = shard, stored / shard.name, shard.stat().st_size
        else:
            tool, source, target, size = zstandard.ZstdDecompressor(), stored / shard.name, out / shard.name, -1
        with source.open("rb") as reader, target.open("wb") as writer:
            options = {"size": size} if step == "pack" else {}
            tool.copy_stream(reader, writer, read_size=4 << 20, write_size=4 << 20, **options)
elif peer == "ZipNN":
    from zipnn import ZipNN
    for shard in shards:
        tool = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=threads)
        if step == "pack":
            (stored / shard.name).write_bytes(tool.compress(bytearray(shard.read_bytes())))
        else:
            (out / shard.name).write_bytes(tool.decompress((stored / shard.name).read_bytes()))
elif peer == "bigsmall delta":
    import bigsmall
    for shard in shards:
        if step == "pack":
            bigsmall.compress_delta(shard, base / shard.name, stored / shard.name, workers=threads, progress=False,
                                    force_delta=True)
        else:
            bigsmall.decompress_delta(stored / shard.name, base / shard.name, out / shard.name, progress=False)
elif peer == "deltatensors":
    import deltatensors
    if step == "start":
        pass
    elif step == "pack":
        deltatensors.save_delta_from_paths(stored / "delta", tuned, base, use_gpu=False)
    else:
        deltatensors.load_delta_from_paths(stored / "delta", base)
else:
    from safetensors.torch import load_file, save_file
    for shard in shards:
        save_file(load_file(shard), (stored if step == "pack" else out) / shard.name)
"""
_PEER_NAMES = ("zstd -1", "zstd -3", "ZipNN", "bigsmall delta", "deltatensors", "safetensors load and save")


@dataclass(frozen=True, slots=True)
class Run:
    """What a process took: seconds, seconds of processors, and its largest resident set in bytes."""

    seconds: float
    processor: float
    resident: int


def main() -> None:
    """Measure and print a Markdown table for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", type=Path, help="a small Llama-style model, as for pairs.py")
    parser.add_argument("tuned", type=Path, help="its fine-tune")
    parser.add_argument("work", type=Path)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.5, 1.5, 5.0], metavar="GB")
    parser.add_argument("--peers-at", type=float, default=1.5, metavar="GB")
    parser.add_argument("--peers-python", help="interpreter with zstandard, zipnn, bigsmall, deltatensors, safetensors")
    parser.add_argument("--presets", nargs="*", default=["balanced", "paper", "exact"])
    parser.add_argument("--peers", nargs="*", default=list(_PEER_NAMES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="of one step")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for size in arguments.sizes:
        pair = arguments.work / f"pair-{size:g}"
        if not pair.is_dir():
            maker = [sys.executable, Path(__file__).with_name("pairs.py"), arguments.base, arguments.tuned, pair]
            subprocess.run([*map(str, maker), "--size", str(size)], check=True, stdout=subprocess.DEVNULL)
        nbytes = sum(path.stat().st_size for path in (pair / "tuned").glob("*.safetensors"))
        print(f"\n{nbytes} bytes, {arguments.threads} threads\n")
        columns = ["s", "GB/s", "ns", "MiB"]
        heads = [
            "",
            "stored, of the fine-tune",
            "start, s",
            *(f"{step}: {c}" for step in ("pack", "unpack") for c in columns),
        ]
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
        missing = []
        for label, steps in _contenders(arguments, pair, size == arguments.peers_at):
            outcome = _measure(steps, pair, arguments.work / "stored", arguments.work / "out", arguments.timeout)
            if isinstance(outcome, str):
                missing.append(f"{label} did not run: {outcome}")
            else:
                _print_row(label, nbytes, *outcome)
        for reason in missing:
            print(f"\n{reason}")


def _contenders(
    arguments: argparse.Namespace, pair: Path, peers: bool
) -> Iterator[tuple[str, Sequence[Sequence[object]]]]:
    """Labels, and the commands that only start, that pack to WORK/stored, and that unpack to WORK/out."""
    base, tuned = pair / "base", pair / "tuned"
    stored, out = arguments.work / "stored", arguments.work / "out"
    ddct, threads = [sys.executable, "-m", "ddct_format"], ["--threads", arguments.threads]
    imports = "import ddct_format.cli.pack, ddct_format.pipeline.many, ddct_format.backends.native_cpu"
    for preset in arguments.presets:
        pack = [*ddct, "pack", base, tuned, stored, "--preset", preset, "--no-cache", *threads]
        unpack = [*ddct, "unpack", stored, "--base", base, out, *threads]
        yield f"ddct {preset}", [[sys.executable, "-c", imports], pack, unpack]
    for peer in arguments.peers if peers and arguments.peers_python else ():
        command = [arguments.peers_python, "-c", _PEERS, peer.replace(" ", "") if "zstd" in peer else peer]
        places = [arguments.threads, base, tuned, stored, out]
        yield peer, [[*command, step, *places] for step in ("start", "pack", "unpack")]


def _measure(
    steps: Sequence[Sequence[object]], pair: Path, stored: Path, out: Path, timeout: float
) -> tuple[int, list[Run]] | str:
    """Stored bytes and what each step took, or why there is nothing."""
    _remove(stored, out)
    runs = []
    for command in steps:
        for path in pair.glob("*/*.safetensors"):
            _read(path)
        outcome = _run(list(map(str, command)), timeout)
        if isinstance(outcome, str):
            return outcome
        runs.append(outcome)
    size = stored.stat().st_size if stored.is_file() else sum(path.stat().st_size for path in stored.iterdir())
    _remove(stored, out)
    return size, runs


def _run(command: Sequence[str], timeout: float) -> Run | str:
    # A child's largest resident set is at least that of its parent: so nothing large is imported here.
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    usage = None
    while usage is None:
        pid, status, usage_now = os.wait4(process.pid, os.WNOHANG)
        if pid:
            usage = usage_now
        elif time.monotonic() - started > timeout:
            process.kill()
            _, status, usage = os.wait4(process.pid, 0)
        else:
            time.sleep(0.02)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stderr is not None
    said = process.stderr.read().strip().splitlines()
    if process.returncode:
        return said[-1] if said and seconds <= timeout else f"ended with {process.returncode} after {seconds:.0f} s"
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(16 << 20):
            pass


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _print_row(label: str, nbytes: int, stored: int, runs: Sequence[Run]) -> None:
    start, *steps = runs
    cells = [
        f"{run.seconds:.1f} | {nbytes / run.seconds / 1e9:.3f} | {run.processor / (nbytes / 2) * 1e9:.1f} | "
        f"{run.resident / 2**20:.0f}"
        for run in steps
    ]
    print(f"| {label} | {stored / nbytes:.3f} | {start.seconds:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
