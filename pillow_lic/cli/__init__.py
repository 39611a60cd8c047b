"""The command ``lic``: info, convert, transcode, bench, train, models.

Each command is a module with ``add``, which adds it to the parser, and ``run``.  Results go to stdout,
messages and progress to stderr.  Exit codes: 0 success, 1 failure, 2 usage.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from glob import glob

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
    if isinstance(sys.stdout, io.TextIOWrapper):  # which may not know all the letters that files' names and help have
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(_expanded(sys.argv[1:] if argv is None else argv))
    try:
        args.run(args)
        _flush()
    except UsageError as error:
        print(f"lic {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _forget_output()
        return 1
    except FAILURES as error:
        print(f"lic {args.command}: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lic {args.command}: interrupted", file=sys.stderr)
        return 1
    return 0


def _flush() -> None:
    """Write what was printed, while there can still be a message if that fails."""
    if not sys.stdout:
        return
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()
        raise


def _forget_output() -> None:
    """Send what nobody takes nowhere, or Python would try once more at its end, and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _expanded(words: list[str]) -> list[str]:
    """The words of a command line with wildcards replaced, where the shell leaves that to programs."""
    if sys.platform != "win32":
        return words
    return [name for word in words for name in (sorted(glob(word)) if "*" in word else []) or [word]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lic", description="Learned image codec: .lic files.")
    parser.add_argument("--version", action="version", version=f"pillow-lic {pillow_lic.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in (info, convert, transcode, bench, train, models, autoload):
        command.add(commands)
    return parser
