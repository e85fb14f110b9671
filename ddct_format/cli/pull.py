"""``ddct pull``."""

from __future__ import annotations

from pathlib import Path

import click

from .output import format_bytes, json_option, print_json, print_table, show_progress

__all__ = ["command"]


@click.command(name="pull")
@click.argument("hub")
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="The base model that it was made for.")
@json_option
def command(hub: str, name: str, out: Path, base: Path, as_json: bool) -> None:
    """Fetch the model NAME from HUB (a directory or a file:// URL) and restore it as the directory OUT."""
    from ..hub import open_hub, pull

    report = pull(open_hub(hub), name, base, out, progress=show_progress(as_json))
    if as_json:
        print_json(report.as_dict())
        return
    print_table(
        {
            "output": report.output,
            "fetched": format_bytes(report.fetched),
            "applied": f"{report.applied} of {report.tensors} tensors",
            "model id": report.target_id,
            "time": f"{report.seconds:.1f} s",
        }
    )
