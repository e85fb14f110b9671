"""Rate–distortion plots of a sweep, drawn by matplotlib (``pip install 'ddct[sweep]'``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .output import check_new, new_file
from .sweep import SweepReport, SweepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_plot", "draw_plot"]

_FORMATS = (".svg", ".png")
_FAMILIES = {"ddct": "#2563a8", "paper": "#c2571a"}
_MARKERS = "ovs^D<>pP*Xhd"


def check_plot(path: Path) -> None:
    """Refuse before hours of work what could not be drawn after them.

    Raises:
        ConfigError: the file's name does not end in .svg or .png, or matplotlib is not installed.
        OutputExistsError, StorageError: the file exists, or its directory does not.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError("a plot's name ends in .svg or .png", place=path)
    if find_spec("matplotlib") is None:
        raise ConfigError("a plot needs matplotlib: pip install 'ddct[sweep]'", place=path)
    check_new(path)


def draw_plot(report: SweepReport, path: Path) -> None:
    """Error over bits per weight, and, where there is one, the metric over bits per weight.

    Raises:
        As :func:`check_plot`.
        StorageError: the file cannot be written.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    panels: list[tuple[str, Callable[[SweepRow], float | None]]] = [("relative squared error", _error)]
    if any(row.metric is not None for row in report.rows):
        panels.append(("metric", lambda row: row.metric))
    figure = Figure(figsize=(7.2 * len(panels), 5.6), layout="constrained")
    for number, (label, value) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        _draw(axes, report.rows, value)
        axes.set_xlabel("bits per weight, everything but side files counted")
        axes.set_ylabel(label)
        if number == 1:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            _reference_lines(axes, report)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    name = Path(report.finetuned).name
    figure.suptitle(f"{_plain(name)}: {report.tensors} tensors, {report.parameters:,} weights", fontsize="medium")
    picture = BytesIO()
    # Neither dates nor random ids: the same sweep gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "ddct", "svg.fonttype": "none"}):
        if path.suffix.lower() == ".svg":
            figure.savefig(picture, format="svg", metadata={"Date": None})
        else:
            figure.savefig(picture, format="png", dpi=150)
    with new_file(path) as stream:
        stream.write(picture.getvalue())


def _error(row: SweepRow) -> float | None:
    return row.error or None  # a lossless archive has no place on a logarithmic scale


def _draw(axes: Axes, rows: Sequence[SweepRow], value: Callable[[SweepRow], float | None]) -> None:
    """Our own unchanged schemes as a line, each kind of variant as points of a shape of its own."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.2)
    for family, colour in _FAMILIES.items():
        variants: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            found = value(row)
            if row.family == family and row.bits_per_weight is not None and found is not None:
                variants.setdefault(row.variant, []).append((row.bits_per_weight, found))
        for number, (variant, points) in enumerate(variants.items()):
            across, up = zip(*sorted(points), strict=True)
            axes.plot(
                across,
                up,
                color=colour,
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=7 if not variant else 6,
                markerfacecolor=colour if not variant else "none",
                linestyle="-" if family == "ddct" and not variant else "none",
                alpha=1 if not variant else 0.8,
                label=f"{family}, {variant}" if variant else family,
            )


def _reference_lines(axes: Axes, report: SweepReport) -> None:
    for label, metric in (("fine-tune", report.finetuned_metric), ("base", report.base_metric)):
        if metric is not None:
            axes.axhline(metric, color="0.5", linestyle="--", linewidth=1)
            axes.annotate(label, (0.01, metric), xycoords=("axes fraction", "data"), va="bottom", fontsize="small")


def _plain(text: str) -> str:
    """A name without what matplotlib would take for mathematics."""
    return text.replace("$", r"\$")
