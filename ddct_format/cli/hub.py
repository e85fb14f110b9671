"""``ddct hub``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import click

from ..errors import HubError
from .hub_options import HUB_HELP, hub_options, publishing_options
from .output import json_option, print_json

__all__ = ["command"]


@click.group(name="hub")
def command() -> None:
    """Look at hubs."""


@command.command(name="list", help=f"Show what is published on HUB ({HUB_HELP}).")
@click.argument("hub")
@hub_options
@json_option
def list_command(hub: str, endpoint: str | None, token_file: str | None, as_json: bool) -> None:
    from ..hub import HubOptions, open_hub

    names = open_hub(hub, HubOptions(endpoint, token_file)).list_names()
    if as_json:
        print_json({"names": names})
        return
    for name in names:
        click.echo(name)


@command.command(
    name="check",
    help=f"""Try on HUB ({HUB_HELP}) whether it keeps what ddct needs.

    Publishes 6 MB of random bytes under a name of its own and removes them. On hf:// that makes a few commits.
    Notes say what else is worth knowing. Exit status 11 if a promise is not kept.""",
)
@click.argument("hub")
@hub_options
@publishing_options
@json_option
def check_command(
    hub: str,
    endpoint: str | None,
    token_file: str | None,
    public: bool,
    layout: Literal["folders", "tags"] | None,
    as_json: bool,
) -> int:
    from ..hub import HubOptions, check_hub, open_hub

    steps = []
    for step in check_hub(open_hub(hub, HubOptions(endpoint, token_file, public, layout))):
        steps.append(step)
        if not as_json:
            click.echo(f"{'ok  ' if step.problem is None else 'FAIL'}  {step.promise}")
            for finding in step.findings:
                click.echo(f"note  {finding}")
    problems = [HubError(step.problem, place=hub) for step in steps if step.problem is not None]
    if as_json:
        error = {"error": problems[0].as_dict()} if problems else {}
        print_json({"steps": [asdict(step) for step in steps], **error})
    for problem in problems[:1]:
        click.echo(f"ddct: error: {problem}", err=True)
        return problem.exit_status
    return 0
