"""``ddct daemon``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .output import json_option, print_json

__all__ = ["command"]

_config_option = click.option(
    "--config", required=True, type=click.Path(path_type=Path), help="The configuration, ddct.toml."
)


@click.group(name="daemon")
def command() -> None:
    """Watch a directory, pack finished checkpoints and publish them."""


@command.command(name="run")
@_config_option
def run_command(config: Path) -> None:
    """Run in the foreground until SIGTERM or Ctrl-C."""
    from ddct_daemon.config import load_config
    from ddct_daemon.log import log_to_stderr
    from ddct_daemon.service import run

    settings = load_config(config)
    log_to_stderr()
    run(settings)


@command.command(name="status")
@_config_option
@json_option
def status_command(config: Path, as_json: bool) -> None:
    """Show one line and one reason per checkpoint."""
    from ddct_daemon.config import load_config
    from ddct_daemon.status import read_status

    status: dict[str, Any] = read_status(load_config(config))
    if as_json:
        print_json(status)
        return
    daemon, rows = status["daemon"], status["checkpoints"]
    click.echo(f"daemon: running, process {daemon['process']}" if daemon["running"] else "daemon: not running")
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['stage']:<10}  {row['line']}")
