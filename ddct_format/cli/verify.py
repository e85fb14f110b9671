"""``ddct verify``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import device_option, resource_options
from .output import json_option, print_json, print_table, show_progress

__all__ = ["command"]


@click.command(name="verify")
@click.argument("archive", type=click.Path())
@click.option("--base", type=click.Path(path_type=Path), help="Also decode every tensor against this base.")
@device_option
@resource_options
@json_option
def command(
    archive: str, base: Path | None, device: str, threads: int | None, memory: int, drop_cache: bool, as_json: bool
) -> None:
    """Check every stored byte of ARCHIVE; with --base, everything that it decodes to."""
    from ..pipeline.verify import verify

    report = verify(
        archive,
        base,
        device=device,
        threads=threads,
        memory=memory,
        drop_cache=drop_cache,
        progress=show_progress(as_json),
    )
    if as_json:
        print_json(report.as_dict())
        return
    print_table(
        {
            "archive": report.archive,
            "chunks": f"{report.chunks} whole",
            "decoded": f"{report.decoded} of {report.tensors} tensors" if base else "no base given",
            "lossless": "yes" if report.lossless else "no",
            "content id": report.content_id,
            "time": f"{report.seconds:.1f} s",
        }
    )
