"""Pack and unpack every pair of a collection of real models; print sizes, errors and task metrics as a table.

Usage: python benchmarks/zoo.py [ZOO] [--preset NAME ...] [--math-limit N]

ZOO (or $DDCT_ZOO) is a folder of model directories with an ``evaluate.py MODEL_DIR TASK [--limit N]`` that prints a
JSON line with ``value``. Without it there is nothing to measure, and the script says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ddct_format import pack, unpack, verify

PAIRS = (("base-lm", "math", "math"), ("base-vit", "vit-mnist", "mnist"))
"""Base, fine-tune, task."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", nargs="?", type=Path, default=os.environ.get("DDCT_ZOO"))
    parser.add_argument("--preset", action="append", help="may be given several times; paper and paper-mix by default")
    parser.add_argument("--math-limit", type=int, default=300)
    arguments = parser.parse_args()
    if arguments.zoo is None or not Path(arguments.zoo).is_dir():
        print("skipped: no collection of real models; give its folder or set DDCT_ZOO")
        return
    zoo = Path(arguments.zoo)
    print("| fine-tune | preset | file bytes | bits per weight | relative error | task: base | fine-tune | decoded |")
    print("|---|---|---|---|---|---|---|---|")
    for base, tuned, task in PAIRS:
        limit = arguments.math_limit if task == "math" else 0
        scores = [evaluate(zoo, zoo / model, task, limit) for model in (base, tuned)]
        for preset in arguments.preset or ("paper", "paper-mix"):
            print(measure(zoo, base, tuned, task, limit, preset, scores), flush=True)


def measure(zoo: Path, base: str, tuned: str, task: str, limit: int, preset: str, scores: list[float]) -> str:
    """One row of the table; every backend must decode the archive to its digests."""
    with tempfile.TemporaryDirectory() as folder:
        archive, out = Path(folder) / "model.ddct", Path(folder) / "model"
        report = pack(zoo / base, zoo / tuned, archive, preset=preset)
        for device in ("cpu", "reference"):
            checked = verify(archive, zoo / base, device=device)
            assert checked.decoded == checked.tensors
        unpack(archive, zoo / base, out)
        decoded = evaluate(zoo, out, task, limit)
    cells = (
        tuned,
        preset,
        f"{report.file_size:,}",
        f"{report.bits_per_weight:.3f}",
        f"{report.error:.3f}",
        *(f"{score:.3f}" for score in (*scores, decoded)),
    )
    return "| " + " | ".join(cells) + " |"


def evaluate(zoo: Path, model: Path, task: str, limit: int) -> float:
    command = [sys.executable, str(zoo / "evaluate.py"), str(model), task]
    if limit:
        command += ["--limit", str(limit)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1])["value"])


if __name__ == "__main__":
    main()
