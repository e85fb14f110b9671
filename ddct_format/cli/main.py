"""Entry point of ``ddct``: finds the sub-command, and turns every refusal into one line and an exit status."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import BudgetError, DdctError, StorageError

__all__ = ["cli", "main"]

_COMMANDS = {
    "daemon": ("daemon", "Watch a directory, pack finished checkpoints and publish them."),
    "hub": ("hub", "List what a hub holds, or check that it can be trusted."),
    "inspect": ("inspect", "Show what an archive holds."),
    "pack": ("pack", "Write a fine-tune as one .ddct file."),
    "pull": ("pull", "Fetch a model from a hub and unpack it."),
    "push": ("push", "Publish an archive on a hub."),
    "report": ("report", "Write a page that shows what an archive holds and how close it comes."),
    "sweep": ("sweep", "Compare presets, and the choices behind them, on one fine-tune."),
    "unpack": ("unpack", "Restore a model directory from an archive and its base."),
    "verify": ("verify", "Check an archive, and with its base everything that it decodes to."),
}


class _LazyGroup(click.Group):
    """Lists the commands without importing them: ``ddct --help`` must not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f".{_COMMANDS[cmd_name][0]}", __package__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ddct")
def cli() -> None:
    """Store fine-tuned models as small, exact changes to their base."""


def main() -> None:
    """Run the command line and exit: 0, a status of :mod:`ddct_format.errors`, 2 for usage, 130 for an interrupt."""
    # Tensors are the unit of parallelism; threads inside each operation would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What goes wrong is one line, ours; the library would announce each of its attempts.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be anything
    _allow_many_files()
    try:
        status: Any = cli.main(prog_name="ddct", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except DdctError as error:
        _end(error)
    except click.ClickException as error:
        _end(error)
    except (click.Abort, KeyboardInterrupt):
        _end(None)
    except MemoryError:
        _end(BudgetError("the machine has no memory left"))
    except OSError as error:  # of what is printed, say: all else is told by where it happens
        _end(StorageError((error.strerror or str(error)).lower(), place=error.filename))


def _allow_many_files() -> None:
    """As many open files as this process may allow itself: every shard of a model is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (1 << 16, 10240):  # macOS refuses more than the second
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < limit:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return


def _end(error: DdctError | click.ClickException | None) -> NoReturn:
    """Say what is wrong, or that it was interrupted, and exit."""
    told: dict[str, object] = {"code": "interrupted", "reason": "interrupted", "exit_status": 130}
    if isinstance(error, DdctError):
        told = error.as_dict()
    elif error is not None:
        told = {"code": "usage", "reason": error.format_message(), "exit_status": error.exit_code}
    with contextlib.suppress(OSError):
        if isinstance(error, click.ClickException):
            error.show()
        else:
            click.echo("ddct: interrupted" if error is None else f"ddct: error: {error}", err=True)
        if "--json" in sys.argv:
            click.echo(json.dumps({"error": {"place": None, "tensor": None, **told}}))
    # What could not be written would be tried once more at the end, with an exit status of its own.
    sys.stdout = sys.stderr = None
    sys.exit(int(str(told["exit_status"])))
