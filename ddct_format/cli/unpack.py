"""``ddct unpack``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import device_option, resource_options
from .output import json_option, print_json, print_table, show_progress

__all__ = ["command"]


@click.command(name="unpack")
@click.argument("archive", type=click.Path())
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="The base model that it was made for.")
@click.option("--lossy", is_flag=True, help="The lossy first layer only; works if the end of ARCHIVE is missing, too.")
@click.option("--exact", is_flag=True, help="Refuse an archive that does not restore the fine-tune bit for bit.")
@click.option(
    "--link",
    "links",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="ARCHIVE",
    help="If ARCHIVE was packed against an earlier checkpoint: the archive of that one, and of the one before, as far "
    "as BASE. May be repeated, in any order.",
)
@click.option(
    "--training-state",
    is_flag=True,
    help="Write optimizer state and other pickles that ARCHIVE carries, too; trust its maker before you load them.",
)
@device_option
@resource_options
@json_option
def command(
    archive: str,
    out: Path,
    base: Path,
    lossy: bool,
    exact: bool,
    links: tuple[Path, ...],
    training_state: bool,
    device: str,
    threads: int | None,
    memory: int,
    drop_cache: bool,
    as_json: bool,
) -> None:
    """Restore the model directory OUT from ARCHIVE and its base."""
    from ..pipeline.unpack import unpack

    if lossy and exact:
        raise click.UsageError("--lossy and --exact exclude one another")
    report = unpack(
        archive,
        base,
        out,
        lossy=lossy,
        exact=exact,
        training_state=training_state,
        links=links,
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
            "output": report.output,
            "applied": f"{report.applied} of {report.tensors} tensors",
            "lossless": "yes" if report.lossless else "no",
            **({"left out": ", ".join(report.left_out)} if report.left_out else {}),
            "model id": report.target_id,
            "time": f"{report.seconds:.1f} s",
        }
    )
