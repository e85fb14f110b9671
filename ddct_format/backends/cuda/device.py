"""Names of CUDA devices, and how much of their memory may be used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from ...errors import BudgetError, ConfigError

__all__ = ["find_devices", "is_out_of_memory", "limit_memory", "limited_growth", "usable_memory"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SHORTAGES = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""In what torch, its libraries, Triton and the driver say when the device has no memory left."""
_UNKNOWN = ("CUDA error: unknown error", "error 999 of CUDA")
_NO_ROOM = 64 << 20
"""Free bytes of a device below which the driver may be unable to load a kernel, which it calls an unknown error."""


def find_devices(name: str) -> list[torch.device]:
    """The devices of a name: ``cuda``, all that are visible and not full; ``cuda:1``; ``cuda:0,2``.

    Raises:
        ConfigError: there is no such device.
        BudgetError: others leave no memory of it, not even what CUDA itself takes.
    """
    match = re.fullmatch(r"cuda(?::(\d+(?:,\d+)*))?", name)
    if match is None:
        raise ConfigError(f"unknown device {name!r}; CUDA devices are called cuda, cuda:n or cuda:n,m")
    if not torch.cuda.is_available():
        raise ConfigError(f"no CUDA device on this machine for {name!r}; use cpu")
    count = torch.cuda.device_count()
    numbers = sorted({int(number) for number in match[1].split(",")}) if match[1] else list(range(count))
    if numbers[-1] >= count:
        raise ConfigError(f"no device {name!r}: this machine has {count}, numbered from 0")
    devices = [torch.device("cuda", number) for number in numbers]
    usable = [device for device in devices if _can_start(device)]
    if not usable or (match[1] and usable != devices):
        raise BudgetError(f"no memory of the device {name!r} is left, not even what CUDA itself takes; use cpu")
    return usable


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory was what was missing; only torch's own allocator has a class for that."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or any(word in str(error) for word in _SHORTAGES):
        return True
    return any(word in str(error) for word in _UNKNOWN) and _is_full()


def _is_full() -> bool:
    """Whether a device that is in use has next to no free memory; no if CUDA answers nothing any more."""
    try:
        used = {number for number in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(number)}
        return any(torch.cuda.mem_get_info(number)[0] < _NO_ROOM for number in used | {torch.cuda.current_device()})
    except (RuntimeError, AssertionError):
        return False


def _can_start(device: torch.device) -> bool:
    try:
        torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def limit_memory(devices: list[torch.device]) -> None:
    """Allow this process no more memory of each device than the variable DDCT_GPU_MEMORY says, such as 2G.

    What is held by the driver itself, a few hundred MiB, comes on top. Work that does not fit takes smaller tiles, and
    in the end the CPU.

    Raises:
        ConfigError: the variable holds no size.
    """
    limit = _limit()
    if limit is not None:
        for device in devices:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)


@contextmanager
def limited_growth(devices: Iterable[torch.device]) -> Iterator[None]:
    """As :func:`limit_memory`, inside the block, and for what this process takes beyond what it holds already.

    Raises:
        ConfigError: the variable holds no size.
    """
    limit = _limit()
    before: dict[torch.device, float] = {}
    try:
        for device in devices if limit is not None else ():
            assert limit is not None
            before[device] = _memory_fraction(device)
            total = torch.cuda.get_device_properties(device).total_memory
            fraction = (torch.cuda.memory_reserved(device) + limit) / total
            torch.cuda.set_per_process_memory_fraction(min(before[device], fraction), device)
        yield
    finally:
        for device, fraction in before.items():
            torch.cuda.set_per_process_memory_fraction(fraction, device)


def _memory_fraction(device: torch.device) -> float:
    """What is allowed by now; older versions of torch do not tell."""
    tell = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return 1.0 if tell is None else float(tell(device))


def usable_memory(device: torch.device) -> int:
    """Bytes of a device's memory that this process has or may still take."""
    free, _ = torch.cuda.mem_get_info(device)
    own: int = free + torch.cuda.memory_reserved(device)
    limit = _limit()
    return own if limit is None else min(own, limit)


def _limit() -> int | None:
    text = os.environ.get("DDCT_GPU_MEMORY", "")
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([KMG]?)(?:IB|B)?", text.upper())
    if match is None:
        raise ConfigError(f"DDCT_GPU_MEMORY is {text!r}, not a size such as 512M or 2G")
    return int(float(match[1]) * _UNITS[match[2]])
