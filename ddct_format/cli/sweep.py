"""``ddct sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError
from .options import device_option, resource_options
from .output import json_option, print_json, show_progress

if TYPE_CHECKING:
    from ..report.sweep import SweepRow

__all__ = ["command"]

_COLUMNS = ("bits/weight", "error", "cosine", "metric", "seconds")
_WIDTH = 11


@click.command(name="sweep")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("finetuned", type=click.Path(path_type=Path))
@click.option(
    "--only",
    multiple=True,
    metavar="GROUP",
    help="Compare only these; may be repeated. presets: all of pack's. transform, patch, gain, low-rank: one choice "
    "behind the presets changed at a time. paper: the same for the paper's scheme. allocation: how many patches the "
    "paper's scheme gives how many bits.",
)
@click.option(
    "--bits",
    default="0.5,1",
    show_default=True,
    metavar="X,Y,…",
    help="Bits per weight at which transform, patch, gain and low-rank are compared.",
)
@click.option(
    "--tensors",
    multiple=True,
    metavar="PATTERN",
    help="Only these tensors ('*.mlp.*'), packed as a model of their own; may be repeated. Saves time.",
)
@click.option(
    "--eval",
    "eval_command",
    metavar="CMD",
    help="Measure each decoded model, and base and fine-tune themselves, as pack --eval does.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw FILE.svg or FILE.png; needs pip install ddct[sweep]."
)
@click.option("--archives", type=click.Path(path_type=Path), help="Leave all archives in this new directory.")
@device_option
@resource_options
@json_option
def command(
    base: Path,
    finetuned: Path,
    only: tuple[str, ...],
    bits: str,
    tensors: tuple[str, ...],
    eval_command: str | None,
    plot: Path | None,
    archives: Path | None,
    device: str,
    threads: int | None,
    memory: int,
    drop_cache: bool,
    as_json: bool,
) -> None:
    """Pack FINETUNED once per scheme, decode each archive, and show what it costs and keeps.

    Every row is a real archive. Error is the squared error relative to the squared change, over all weights.
    """
    from ..pipeline.guard import Evaluation
    from ..report.plot import check_plot, draw_plot
    from ..report.schemes import choose_schemes
    from ..report.sweep import sweep

    schemes = choose_schemes(only, _numbers(bits))
    if plot is not None:
        check_plot(plot)
    width = max(len(scheme.name) for scheme in schemes)
    if not as_json:
        click.echo(f"{'scheme':<{width}}" + "".join(f"{column:>{_WIDTH + 1}}" for column in _COLUMNS))

    def show(row: SweepRow) -> None:
        if not as_json:
            click.echo(_line(row, width))

    report = sweep(
        base,
        finetuned,
        schemes,
        tensors=tensors,
        evaluation=None if eval_command is None else Evaluation(eval_command),
        archives=archives,
        device=device,
        threads=threads,
        memory=memory,
        drop_cache=drop_cache,
        on_row=show,
        progress=show_progress(as_json),
    )
    if plot is not None:
        draw_plot(report, plot)
    if as_json:
        print_json(report.as_dict())
        return
    for name, metric in (("fine-tune", report.finetuned_metric), ("base", report.base_metric)):
        if metric is not None:
            click.echo(f"{name:<{width}}{metric:>{4 * (_WIDTH + 1)}.4f}")


def _line(row: SweepRow, width: int) -> str:
    cells = (
        _number(row.bits_per_weight, ".3f"),
        _number(row.error, ".4f"),
        _number(row.cosine, ".4f"),
        _number(row.metric, ".4f"),
        _number(row.seconds, ".1f"),
    )
    problem = "" if row.problem is None else f"  {row.problem}"
    return f"{row.scheme:<{width}}" + "".join(f"{cell:>{_WIDTH + 1}}" for cell in cells) + problem


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--bits takes numbers with commas between them, not {text!r}") from None
