"""``ddct daemon``."""

from __future__ import annotations

import time
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
@json_option
def run_command(config: Path, as_json: bool) -> None:
    """Run in the foreground until SIGTERM or Ctrl-C."""
    from ddct_daemon.config import load_config
    from ddct_daemon.log import log_to_stderr
    from ddct_daemon.service import run

    settings = load_config(config)
    log_to_stderr()
    run(settings)
    if as_json:
        print_json({"outcome": "stopped"})


@command.command(name="status")
@_config_option
@json_option
def status_command(config: Path, as_json: bool) -> None:
    """Show one line per checkpoint: where it stands, sizes before and after, the error, and why."""
    from ddct_daemon.config import load_config
    from ddct_daemon.status import read_status, table

    status: dict[str, Any] = read_status(load_config(config))
    if as_json:
        print_json(status)
        return
    daemon, rows = status["daemon"], status["checkpoints"]
    paused = ", paused" if daemon["paused"] else ""
    click.echo(
        (f"daemon: running, process {daemon['process']}" if daemon["running"] else "daemon: not running") + paused
    )
    for line in table(rows) if rows else ():
        click.echo(line)


@command.command(name="submit")
@_config_option
@json_option
@click.argument("path", type=click.Path(path_type=Path))
def submit_command(config: Path, path: Path, as_json: bool) -> None:
    """Tell the daemon that the checkpoint PATH is finished: no waiting, and no end marker needed."""
    _show(_ask(config, {"command": "submit", "path": str(path.absolute())}), as_json)


@command.command(name="pause")
@_config_option
@json_option
def pause_command(config: Path, as_json: bool) -> None:
    """Begin no new pack and no new upload, until `resume`; a restart does not end it."""
    _show(_ask(config, {"command": "pause"}), as_json)


@command.command(name="resume")
@_config_option
@json_option
def resume_command(config: Path, as_json: bool) -> None:
    """End a pause."""
    _show(_ask(config, {"command": "resume"}), as_json)


@command.command(name="drain")
@_config_option
@json_option
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=600, show_default=True, help="Seconds to wait at most."
)
def drain_command(config: Path, timeout: float, as_json: bool) -> None:
    """Wait until every finished checkpoint is published; exit status 14 if that takes too long.

    For Slurm epilogs and preStop hooks. Failures are tried again at once.
    """
    from ..errors import ConfigError, NotDrainedError

    deadline = time.monotonic() + timeout
    answer = _ask(config, {"command": "drain"})
    while answer["pending"]:
        if answer["paused"]:
            raise ConfigError("the daemon is paused: resume it first", place=config)
        if time.monotonic() > deadline:
            raise NotDrainedError(f"not published in time: {', '.join(answer['pending'])}", place=config)
        time.sleep(0.2)
        answer = _ask(config, {"command": "status"})
    _show(answer, as_json)


def _show(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)


def _ask(config: Path, request: dict[str, Any]) -> dict[str, Any]:
    from ddct_daemon.config import load_config
    from ddct_daemon.control import ask_daemon

    return ask_daemon(load_config(config).state_path, request)
