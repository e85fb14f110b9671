"""Names of CUDA devices."""

from __future__ import annotations

import re

import torch

from ...errors import ConfigError

__all__ = ["find_device"]


def find_device(name: str) -> torch.device:
    """The device ``cuda`` or ``cuda:n``.

    Raises:
        ConfigError: there is no such device, or Triton is not installed.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"unknown device {name!r}; a CUDA device is called cuda or cuda:n")
    if not torch.cuda.is_available():
        raise ConfigError(f"no CUDA device on this machine for {name!r}; use cpu")
    index = int(match[1]) if match[1] else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise ConfigError(f"no device {name!r}: this machine has {torch.cuda.device_count()}, numbered from 0")
    return torch.device("cuda", index)
