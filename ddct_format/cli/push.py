"""``ddct push``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from .hub_options import HUB_HELP, hub_options, publishing_options
from .output import format_bytes, json_option, print_json, print_table

__all__ = ["command"]


@click.command(name="push", help=f"Publish the file ARCHIVE on HUB ({HUB_HELP}) under NAME.")
@click.argument("archive", type=click.Path(path_type=Path))
@click.argument("hub")
@click.argument("name")
@hub_options
@publishing_options
@json_option
def command(
    archive: Path,
    hub: str,
    name: str,
    endpoint: str | None,
    token_file: str | None,
    public: bool,
    layout: Literal["folders", "tags"] | None,
    as_json: bool,
) -> None:
    from ..hub import HubOptions, open_hub, push

    pointer = push(open_hub(hub, HubOptions(endpoint, token_file, public, layout)), name, archive)
    if as_json:
        print_json({"name": name, **asdict(pointer)})
        return
    print_table({"name": name, "size": format_bytes(pointer.size), "sha256": pointer.sha256})
