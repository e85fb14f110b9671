"""``ddct report``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import device_option, resource_options
from .output import json_option, print_json, print_table, show_progress

__all__ = ["command"]


@click.command(name="report")
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="The base model that it was made for.")
@click.option("--against", type=click.Path(path_type=Path), help="The fine-tune: compare what is decoded with it.")
@click.option("--lossy", is_flag=True, help="Measure what the lossy first layer decodes to, if there is an exact one.")
@click.option("--out", type=click.Path(path_type=Path), help="The page; ARCHIVE.html by default. Never overwritten.")
@click.option(
    "--largest",
    type=click.IntRange(0),
    default=24,
    show_default=True,
    help="Draw importance maps and histograms of so many tensors: those that take the most bytes.",
)
@device_option
@resource_options
@json_option
def command(
    archive: Path,
    base: Path,
    against: Path | None,
    lossy: bool,
    out: Path | None,
    largest: int,
    device: str,
    threads: int | None,
    memory: int,
    drop_cache: bool,
    as_json: bool,
) -> None:
    """Write a page that shows what ARCHIVE holds: bits and errors by tensor, bytes by part, changes of weights.

    The page is one HTML file that loads nothing. With --json, the same numbers are printed, and a page is written
    only if --out names it.
    """
    from ..report.archive_report import report_archive
    from ..report.output import check_new, new_file
    from ..report.page import page_pieces

    if out is None and not as_json:
        out = archive.with_name(f"{archive.name}.html")
    if out is not None:
        check_new(out)
    report = report_archive(
        archive,
        base,
        against,
        lossy=lossy,
        largest=largest,
        device=device,
        threads=threads,
        memory=memory,
        drop_cache=drop_cache,
        progress=show_progress(as_json),
    )
    if out is not None:
        with new_file(out) as stream:
            for piece in page_pieces(report):
                stream.write(piece.encode(errors="backslashreplace"))
    if as_json:
        print_json(report.as_dict())
        return
    error = report.stored_error if report.measured_error is None else report.measured_error
    print_table(
        {
            "page": out,
            "bits per weight": f"{report.bits_per_weight or 0:.3f}",
            "relative error": "none stored as a change" if error is None else f"{error:.4f}",
            **({} if report.cosine is None else {"cosine": f"{report.cosine:.4f}"}),
            **(
                {}
                if report.against_is_packed in (None, True)
                else {"warning": f"{against} is not the packed fine-tune"}
            ),
            "tensors": len(report.tensors),
        }
    )
