"""The options of every command that talks to a hub."""

from __future__ import annotations

from collections.abc import Callable

import click

__all__ = ["HUB_HELP", "hub_options", "publishing_options"]

HUB_HELP = "a directory, file:///path, hf://owner/repository or s3://bucket/prefix"


def hub_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``endpoint`` and ``token_file`` to a command."""
    command = click.option("--endpoint", help="URL of the service, if it is not huggingface.co or Amazon's.")(command)
    return click.option("--token-file", help="File with the token for hf://, readable by its owner only.")(command)


def publishing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``public`` and ``layout`` to a command that publishes."""
    command = click.option(
        "--layout",
        type=click.Choice(["folders", "tags"]),
        help="hf://: a folder or a tag for each model. By default as the repository does, or folders in a new one.",
    )(command)
    return click.option("--public", is_flag=True, help="hf://: the repository may be visible to everybody.")(command)
