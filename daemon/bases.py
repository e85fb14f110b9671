"""Which of the configured bases a checkpoint was fine-tuned from.

Names are hints, which only decide the order of the candidates. The tensors decide: a base must share names and shapes,
and among those that do, one with a tensor of equal bytes (a frozen one) is proof; else the most similar values win.
Whatever is chosen, its digests go into the archive, and decoding refuses any other.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddct_format import Checkpoint, open_checkpoint
from ddct_format.errors import BaseMismatchError, DdctError

__all__ = ["choose_base", "named_base"]

_SAMPLE_TENSORS = 6
_SAMPLE_BYTES = 64 << 10
_MAX_HINT_BYTES = 1 << 20
_UNRELATED = 0.5
"""Relative squared distance beyond which a base is another model: fine-tunes stay far below, strangers are near 2."""

_SIDECARS = ("*.yaml", "*.yml")
"""Configurations that trainers leave beside checkpoints: axolotl's has ``base_model``, LLaMA-Factory's the other."""
_MAX_SIDECARS = 20
_SIDECAR_KEY = re.compile(
    r"^(?:base_model|model_name_or_path):[ \t]+[\"']?([\w.\-/]{1,200})[\"']?[ \t]*(?:#.*)?$", re.MULTILINE
)
_ADAPTER_KEY = re.compile(r'"base_model_name_or_path"\s*:\s*"([\w.\-/]{1,200})"')
_CARD_KEY = re.compile(r"^base_model:[ \t]*\n?[ \t]*(?:-[ \t]+)?[\"']?([\w.\-/]{1,200})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Match:
    path: Path
    shared: int
    frozen: int
    distance: float


def named_base(directory: Path) -> str | None:
    """What the checkpoint's own files call its base; a locator, not an identity.

    In this order: an adapter's configuration, the model card, and the configuration that axolotl or LLaMA-Factory
    left in the checkpoint or in the run's directory above it.
    """
    sources = [(directory / "adapter_config.json", _ADAPTER_KEY), (directory / "README.md", _CARD_KEY)]
    for place in (directory, directory.parent):
        sidecars = sorted(path for pattern in _SIDECARS for path in place.glob(pattern) if path.is_file())
        sources += [(path, _SIDECAR_KEY) for path in sidecars[:_MAX_SIDECARS]]
    for path, pattern in sources:
        with contextlib.suppress(OSError):
            if not path.is_file():  # opening a named pipe would wait for a writer
                continue
            with path.open("rb") as file:
                match = pattern.search(file.read(_MAX_HINT_BYTES).decode("utf-8", "replace"))
            if match is not None:
                return match[1]
    return None


def choose_base(bases: Sequence[Path], checkpoint: Path, names: Mapping[str, str]) -> Path:
    """The base of ``checkpoint``.

    Args:
        bases: directories, in the order of preference.
        names: repository names of bases, by directory.

    Raises:
        BaseMismatchError: none fits; the reason says how each fails.
        CheckpointError, StorageError: the checkpoint cannot be read.
    """
    if len(bases) == 1:
        return bases[0]
    hint = named_base(checkpoint)
    ordered = sorted(bases, key=lambda base: not _is_named(base, hint, names))
    matches, reasons = [], []
    with open_checkpoint(checkpoint) as source:
        for base in ordered:
            try:
                with open_checkpoint(base) as candidate:
                    match = _compare(base, candidate, source)
            except DdctError as error:
                reasons.append(str(error))
                continue
            if match.shared and (match.frozen or match.distance <= _UNRELATED):
                matches.append(match)
            else:
                reasons.append(f"{base}: {match.shared} tensors in common, relative distance {match.distance:.2f}")
    if not matches:
        raise BaseMismatchError(f"none of the configured bases fits ({'; '.join(reasons)})", place=checkpoint)
    # Of equals, the first: the one that the checkpoint names, or the preferred one.
    return max(matches, key=lambda match: (match.shared, match.frozen > 0, -match.distance)).path


def _is_named(base: Path, hint: str | None, names: Mapping[str, str]) -> bool:
    if hint is None:
        return False
    hint = hint.rstrip("/")
    # Owners are left out of the names of directories more often than not.
    return hint in (names.get(str(base)), str(base)) or hint.rpartition("/")[2] == base.name


def _compare(path: Path, base: Checkpoint, source: Checkpoint) -> _Match:
    shared = [
        name
        for name, tensor in source.tensors.items()
        if (other := base.tensors.get(name)) is not None and other.shape == tensor.shape and other.dtype == tensor.dtype
    ]
    # The middle of the list too: first and last layers are what is frozen or replaced most often.
    largest = sorted(shared, key=lambda name: -source.tensors[name].nbytes)
    sample = largest[:: max(1, len(largest) // _SAMPLE_TENSORS)][:_SAMPLE_TENSORS]
    frozen, energy, difference = 0, 0.0, 0.0
    for name in sample:
        ours, theirs = (bytes(model.read(name)[:_SAMPLE_BYTES]) for model in (source, base))
        frozen += ours == theirs and len(set(ours[:4096])) > 16
        tuned, original = (_values(raw, source.tensors[name].dtype) for raw in (ours, theirs))
        if tuned is not None and original is not None:
            energy += float(np.sum(original**2))
            difference += float(np.sum((tuned - original) ** 2))
    return _Match(path, len(shared), frozen, difference / energy if energy else 0.0)


def _values(raw: bytes, dtype: str) -> npt.NDArray[np.float64] | None:
    """Finite numbers of a sample; None for types that are no floating point numbers of two or four bytes."""
    if dtype == "BF16":
        values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif dtype in ("F16", "F32"):
        values = np.frombuffer(raw, np.float16 if dtype == "F16" else np.float32)
    else:
        return None
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
