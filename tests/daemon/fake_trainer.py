"""A process that writes a checkpoint the way the Hugging Face Trainer does: file by file, slowly.

``python fake_trainer.py DIRECTORY STEP SEED PAUSE``: the weights are those of ``daemon_models.tuned``.
Real checkpoints are written in this order: config, weights (full size first), training arguments,
optimizer, scheduler, random state, and ``trainer_state.json`` last; nothing is synced.
"""

from __future__ import annotations

import io
import json
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
    """A zip file with the member that torch.save writes first."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/version", b"3\n")
    return raw.getvalue()


if __name__ == "__main__":
    target, number, seed_text, seconds = sys.argv[1:]
    write_checkpoint(Path(target), int(number), int(seed_text), lambda: time.sleep(float(seconds)))
