"""A trainer killed at random moments: what the rules accept is whole, bit for bit; what is not whole, they refuse."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_trainer import write_checkpoint

from ddct_daemon.completeness import inspect
from ddct_daemon.listing import list_checkpoint

TRAINER = Path(__file__).with_name("fake_trainer.py")
REMEASURE_EVERY = 10
"""Kills; the load of the machine changes, and with it how long a checkpoint takes."""


def start_trainer(directory: Path, seed: int) -> subprocess.Popen[bytes]:
    """A trainer that has begun to write its checkpoint."""
    trainer = subprocess.Popen([sys.executable, TRAINER, directory, str(seed), str(seed), "0.01"])
    while trainer.poll() is None and not directory.exists():
        pass
    return trainer


def undisturbed_seconds(directory: Path) -> float:
    """From the first sign of a checkpoint to the end of its trainer."""
    trainer = start_trainer(directory, 0)
    begun = time.monotonic()
    assert trainer.wait() == 0
    return time.monotonic() - begun


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def survive_killed_trainers(root: Path, kills: int) -> tuple[int, int]:
    """How many of the checkpoints were accepted and refused."""
    chance, accepted, duration = random.Random(), 0, 0.0
    for number in range(kills):
        if number % REMEASURE_EVERY == 0:
            duration = undisturbed_seconds(root / f"measured-{number}")
        directory, quiet = root / f"checkpoint-{number}", root / f"quiet-{number}"
        trainer = start_trainer(directory, number)
        try:
            trainer.wait(chance.uniform(0, 1.2 * duration))
        except subprocess.TimeoutExpired:
            trainer.kill()
        trainer.wait()
        listing = list_checkpoint(root, directory.name)
        assert listing is not None
        write_checkpoint(quiet, number, number)
        whole = contents(directory) == contents(quiet)
        verdict = inspect(listing)
        assert verdict.weights is whole, f"{'whole' if whole else 'not whole'}, but: {verdict}"
        assert verdict.resumable is whole, verdict.reason
        accepted += whole
    return accepted, kills - accepted


def test_a_trainer_killed_at_some_moments(tmp_path: Path) -> None:
    survive_killed_trainers(tmp_path, 5)


@pytest.mark.slow
def test_a_trainer_killed_at_very_many_moments(tmp_path: Path) -> None:
    accepted, refused = survive_killed_trainers(tmp_path, 60)
    assert accepted
    assert refused
