"""A trainer killed at random moments: what the rules accept is whole, bit for bit; what is not whole, they refuse."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_models import tuned_bytes

from ddct_daemon.completeness import inspect
from ddct_daemon.listing import list_checkpoint

TRAINER = Path(__file__).with_name("fake_trainer.py")
FILES = {
    "config.json",
    "model.safetensors",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
}


def survive_killed_trainers(root: Path, kills: int) -> tuple[int, int]:
    """How many of the checkpoints were accepted and refused."""
    chance, accepted = random.Random(), 0
    for number in range(kills):
        directory = root / f"checkpoint-{number}"
        trainer = subprocess.Popen([sys.executable, TRAINER, directory, str(number), str(number), "0.01"])
        while trainer.poll() is None and not directory.exists():
            pass
        try:
            trainer.wait(chance.uniform(0, 0.2))
        except subprocess.TimeoutExpired:
            trainer.kill()
        trainer.wait()
        listing = list_checkpoint(root, directory.name)
        assert listing is not None
        whole = {file.path for file in listing.files} == FILES
        assert inspect(listing).weights is whole, inspect(listing).reason
        if whole:
            assert (directory / "model.safetensors").read_bytes() == tuned_bytes(number)
            assert inspect(listing).resumable
        accepted += whole
    return accepted, kills - accepted


def test_a_trainer_killed_at_some_moments(tmp_path: Path) -> None:
    survive_killed_trainers(tmp_path, 5)


@pytest.mark.slow
def test_a_trainer_killed_at_very_many_moments(tmp_path: Path) -> None:
    accepted, refused = survive_killed_trainers(tmp_path, 60)
    assert accepted
    assert refused
