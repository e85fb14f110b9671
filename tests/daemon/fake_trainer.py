"""A process that writes a checkpoint the way the Hugging Face Trainer does: file by file, slowly.

``python fake_trainer.py DIRECTORY STEP SEED PAUSE``: the weights are those of ``daemon_models.tuned``.
``python fake_trainer.py RUN STEPS PAUSE``: so many checkpoints, and right after each one the one before is removed, as
``save_total_limit=1`` does.
Real checkpoints are written in this order: config, weights (full size first), training arguments,
optimizer, scheduler, random state, and ``trainer_state.json`` last; nothing is synced.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from daemon_models import tuned_bytes


def write_checkpoint(directory: Path, step: int, seed: int, pause: Callable[[], object] = lambda: None) -> None:
    directory.mkdir(parents=True)
    pause()
    (directory / "config.json").write_text('{"model_type": "test", "architectures": ["TestModel"]}')
    pause()
    weights = tuned_bytes(seed)
    with (directory / "model.safetensors").open("wb") as file:
        file.truncate(len(weights))
        for start in range(0, len(weights), len(weights) // 4 + 1):
            pause()
            file.write(weights[start : start + len(weights) // 4 + 1])
            file.flush()
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        pause()
        (directory / name).write_bytes(torch_file())
    pause()
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}, indent=2))


def torch_file() -> bytes:
    """A zip file with the member that torch.save writes first; the same bytes at any time."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"\x80\x02}q\x00.")
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return raw.getvalue()


def train(run: Path, steps: int, seconds: float) -> None:
    for step in range(1, steps + 1):
        write_checkpoint(run / f"checkpoint-{step}", step, step, lambda: time.sleep(seconds))
        shutil.rmtree(run / f"checkpoint-{step - 1}", ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        train(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    else:
        target, number, seed_text, seconds_text = sys.argv[1:]
        write_checkpoint(Path(target), int(number), int(seed_text), lambda: time.sleep(float(seconds_text)))
