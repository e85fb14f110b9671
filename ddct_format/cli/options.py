"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

__all__ = ["device_option"]


class _Device(click.ParamType[str]):
    """A device's name; whether the machine has it is found out when it is used."""

    name = "auto|cpu|cuda[:N]|reference"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|reference", value):
            self.fail(f"{value!r} is not one of {self.name}", param, ctx)
        return value


device_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--device", type=_Device(), default="cpu", show_default=True, help="Who computes; auto is cuda where there is one."
)
