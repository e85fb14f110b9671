"""``python -m ddct_daemon run --config ddct.toml``: the daemon without the rest of the command line."""

from __future__ import annotations

import argparse
import sys

from ddct_format.errors import DdctError

from .config import load_config
from .log import log_to_stderr
from .service import run

__all__ = ["main"]


def main() -> int:
    """Run the daemon; the exit status is that of the error, as in ``ddct_format.errors``."""
    parser = argparse.ArgumentParser(prog="ddct_daemon", description="Pack and publish finished checkpoints.")
    commands = parser.add_subparsers(required=True)
    run_parser = commands.add_parser("run", help="run until SIGTERM")
    run_parser.add_argument("--config", required=True, help="the configuration, ddct.toml")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
        log_to_stderr()
        run(config)
    except DdctError as error:
        print(f"ddct: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
