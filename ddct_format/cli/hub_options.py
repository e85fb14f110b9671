"""The options of every command that talks to a hub."""

from __future__ import annotations

from collections.abc import Callable

import click

__all__ = ["HUB_HELP", "hub_options"]

HUB_HELP = "a directory, file:///path, hf://owner/repository or s3://bucket/prefix"


def hub_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``endpoint`` and ``token_file`` to a command."""
    command = click.option("--endpoint", help="URL of the service, if it is not huggingface.co or Amazon's.")(command)
    return click.option("--token-file", help="File with the token for hf://, readable by its owner only.")(command)
