"""Refusing to write an archive that is worse than its maker asked for."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from ..container.publish import temporary_path
from ..container.records import TensorRecord
from ..errors import ConfigError, QualityError
from .unpack import unpack

__all__ = ["Evaluation", "check_errors", "read_metric"]

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
_NAMED = 5
_SHOWN_OUTPUT = 400


def check_errors(records: Sequence[TensorRecord], largest: float) -> None:
    """Check the relative squared error of every tensor.

    Raises:
        QualityError: one or more are above ``largest``; the worst are named.
    """
    worse = sorted(
        (r for r in records if r.error is not None and not r.error <= largest), key=lambda r: -(r.error or 0)
    )
    if not worse:
        return
    named = ", ".join(f"{record.name} ({record.error:.4g})" for record in worse[:_NAMED])
    more = f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else ""
    raise QualityError(
        f"{len(worse)} of {len(records)} tensors have a relative error above {largest:g}: {named}{more}",
        tensor=worse[0].name if len(worse) == 1 else None,
    )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A user's own measure of a model.

    Attributes:
        command: run without a shell on the decoded model's directory, which replaces ``{}`` in it, or else follows it.
        smallest, largest: what the measure must not fall below, or exceed.
    """

    command: str
    smallest: float | None = None
    largest: float | None = None

    def check(self, archive: Path, base: Path, *, device: str, threads: int) -> float:
        """Decode the archive beside itself, run the command on it and return what it measured.

        Raises:
            QualityError: the measure is out of bounds, or there is none: the command failed or printed no number.
            ConfigError: the command cannot be run at all.
        """
        folder = temporary_path(archive.parent)
        folder.mkdir()
        try:
            model = folder / "model"
            unpack(archive, base, model, device=device, threads=threads)
            value = self.measure(model)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if self.smallest is not None and not value >= self.smallest:
            raise QualityError(f"the decoded model's metric is {value:g}, below {self.smallest:g}")
        if self.largest is not None and not value <= self.largest:
            raise QualityError(f"the decoded model's metric is {value:g}, above {self.largest:g}")
        return value

    def measure(self, model: Path) -> float:
        """Run the command on a model directory.

        Raises:
            QualityError: it failed, or printed no finite number.
            ConfigError: it cannot be run at all.
        """
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ConfigError(f"the evaluation command cannot be read: {error}") from None
        if not words:
            raise ConfigError("the evaluation command is empty")
        command = [word.replace("{}", str(model)) for word in words]
        if command == words:
            command.append(str(model))
        try:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise ConfigError(f"the evaluation command cannot be run: {error.strerror}", place=words[0]) from None
        if result.returncode:
            said = " ".join(result.stderr.split())[-_SHOWN_OUTPUT:]
            raise QualityError(f"the evaluation command ended with status {result.returncode}: {said}")
        value = read_metric(result.stdout)
        if value is None:
            raise QualityError("the evaluation command printed no number")
        if not isfinite(value):
            raise QualityError(f"the evaluation command measured {value:g}")
        return value


def read_metric(output: str) -> float | None:
    """``value`` of the last line if that is a JSON object which has one, or else the last number of the output."""
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines:
        return None
    try:
        parsed = json.loads(lines[-1])
    except ValueError:
        parsed = None
    if isinstance(parsed, dict) and isinstance(parsed.get("value"), int | float):
        return float(parsed["value"])
    numbers = _NUMBER.findall(output)
    return float(numbers[-1]) if numbers else None
