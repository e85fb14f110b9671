"""``ddct pull``."""

from __future__ import annotations

from pathlib import Path

import click

from .hub_options import HUB_HELP, hub_options
from .options import device_option, resource_options
from .output import format_bytes, json_option, print_json, print_table, show_progress

__all__ = ["command"]


@click.command(
    name="pull",
    help=f"""Fetch the model NAME from HUB ({HUB_HELP}) and restore it as the directory OUT.

    A transfer that broke goes on where it ended when the command is run again.

    With --lossy only the first layers are fetched, if the archive has an exact layer behind them. What was fetched
    stays in a hidden file beside OUT; a later pull without --lossy to another OUT beside it fetches only the rest.""",
)
@click.argument("hub")
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="The base model that it was made for.")
@click.option("--lossy", is_flag=True, help="The lossy first layer only; the rest can be fetched later.")
@click.option(
    "--training-state",
    is_flag=True,
    help="Restore published optimizer state and other pickles, too; trust their maker before you load them.",
)
@hub_options
@device_option
@resource_options
@json_option
def command(
    hub: str,
    name: str,
    out: Path,
    base: Path,
    lossy: bool,
    training_state: bool,
    endpoint: str | None,
    token_file: str | None,
    device: str,
    threads: int | None,
    memory: int,
    drop_cache: bool,
    as_json: bool,
) -> None:
    from ..checkpoint import open_checkpoint
    from ..hub import HubOptions, open_hub, pull

    # A path with a slip of the pen should not cost a download.
    open_checkpoint(base).close()

    report = pull(
        open_hub(hub, HubOptions(endpoint, token_file)),
        name,
        base,
        out,
        lossy=lossy,
        training_state=training_state,
        device=device,
        threads=threads,
        memory=memory,
        drop_cache=drop_cache,
        progress=show_progress(as_json),
    )
    if as_json:
        print_json(report.as_dict())
        return
    missing = format_bytes(report.missing)
    print_table(
        {
            "output": report.output,
            "fetched": format_bytes(report.fetched),
            "applied": f"{report.applied} of {report.tensors} tensors",
            **({"left out": ", ".join(report.left_out)} if report.left_out else {}),
            "lossless": "yes" if report.lossless else "no",
            "model id": report.target_id,
            **({"kept": f"{report.partial}, to go on without --lossy: {missing} more"} if report.partial else {}),
            "time": f"{report.seconds:.1f} s",
        }
    )
