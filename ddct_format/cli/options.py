"""Options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import click

from .session import be_nice

__all__ = ["device_option", "resource_options"]

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _Device(click.ParamType[str]):
    """A device's name; whether the machine has it is found out when it is used."""

    name = "auto|cpu|cuda[:N[,M]]|reference"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3}(,\d{1,3})*)?|reference", value):
            self.fail(f"{value!r} is not one of {self.name}", param, ctx)
        return value


class _Bytes(click.ParamType[int]):
    """A number of bytes: 512M, 1.5G; units are powers of 1024."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([KMGT]?)(?:i?B)?", str(value).upper().replace("IB", "B"))
        if match is None:
            self.fail(f"{value!r} is not a size such as 512M or 1.5G", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


def _be_nice(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        be_nice(value)


def _limit_gpu_memory(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        os.environ["DDCT_GPU_MEMORY"] = str(value)  # it is the process that is limited


_DEVICE: tuple[Decorator, ...] = (
    click.option(
        "--device",
        type=_Device(),
        default="cpu",
        show_default=True,
        help="Who computes; cuda is all GPUs, which share the tensors; auto is cuda where there is one.",
    ),
    click.option(
        "--gpu-memory",
        type=_Bytes(),
        callback=_limit_gpu_memory,
        expose_value=False,
        help="Take no more of each GPU's memory, beside what CUDA itself takes; what does not fit goes in smaller "
        "pieces, or to the CPU. By default what the variable DDCT_GPU_MEMORY says, or no limit.",
    ),
)

_RESOURCES: tuple[Decorator, ...] = (
    click.option("--threads", type=click.IntRange(1, 256), help="Worker threads; the cores, at most 8, by default."),
    click.option(
        "--memory",
        type=_Bytes(),
        default="1G",
        show_default=True,
        help="Working set, beside what Python and its libraries take. No model or tensor is too large to be "
        "packed or decoded in it: large tensors go through temporary and mapped files, in bands. "
        "Packing needs at least 256M.",
    ),
    click.option(
        "--drop-cache",
        is_flag=True,
        help="Leave nothing of the models that are read and written in the page cache, for the sake of others; "
        "archives stay there.",
    ),
    click.option(
        "--nice",
        type=click.IntRange(0, 19),
        callback=_be_nice,
        expose_value=False,
        help="Lower the priority by so much: 19 takes only what nobody else wants. Where Linux shares the processor "
        "out among sessions, the command goes on in a session of its own, and Ctrl-C and Ctrl-Z are passed on to it.",
    ),
)


def device_option(command: Command) -> Command:
    """``--device`` and ``--gpu-memory``."""
    for option in reversed(_DEVICE):
        command = option(command)
    return command


def resource_options(command: Command) -> Command:
    """``--threads``, ``--memory``, ``--drop-cache`` and ``--nice``, in this order."""
    for option in reversed(_RESOURCES):
        command = option(command)
    return command
