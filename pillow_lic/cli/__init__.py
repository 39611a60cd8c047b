"""The command ``lic``: info, convert, transcode, bench, train, models.

Each command is a module with ``add``, which adds it to the parser, and ``run``.  Results go to stdout,
messages and progress to stderr.  Exit codes: 0 success, 1 failure, 2 usage.
"""

from __future__ import annotations

import argparse
import io
import os
import sys

from PIL import Image

import pillow_lic
from pillow_lic.cli import autoload, bench, convert, info, models, train, transcode
from pillow_lic.cli.common import UsageError

__all__ = ["main"]

FAILURES = (
    OSError, ValueError, TypeError, ImportError, ArithmeticError, MemoryError, Image.DecompressionBombError,
)  # fmt: skip
"""What ends a command with a message."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # which may not know all the letters that files' names have
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args.run(args)
    except UsageError as error:
        print(f"lic {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FAILURES as error:
        print(f"lic {args.command}: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lic {args.command}: interrupted", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lic", description="Learned image codec: .lic files.")
    parser.add_argument("--version", action="version", version=f"pillow-lic {pillow_lic.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in (info, convert, transcode, bench, train, models, autoload):
        command.add(commands)
    return parser
