"""``lic transcode``."""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

import pillow_lic
from pillow_lic import container
from pillow_lic.cli.common import KNOWN_CONTEXTS, UsageError, file_name, progress
from pillow_lic.options import FAST_CONTEXTS, EncoderOptions
from pillow_lic.plugin import EXTENSION


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("transcode", help="code a .lic file anew, same pixels", description=run.__doc__)
    parser.add_argument("source", type=file_name, metavar="SOURCE", help="a .lic file")
    parser.add_argument(
        "target", type=file_name, metavar="TARGET", help="where to write the new one; may be the source"
    )
    parser.add_argument(
        "--context",
        default="auto",
        help=f"{KNOWN_CONTEXTS}; default auto, the smallest of none, {', '.join(FAST_CONTEXTS)}",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Code a .lic file with another context model: another size, identical pixels and metadata."""
    from pillow_lic.batch.files import locate, write

    source, target = Path(args.source), Path(args.target)
    if target.suffix.lower() != EXTENSION:
        raise UsageError(f"the target must end in {EXTENSION}, not {args.target!r}")
    try:
        EncoderOptions(context=args.context)
    except ValueError as error:
        raise UsageError(str(error)) from None
    data = source.read_bytes()
    with progress("transcode"):
        try:
            coded = pillow_lic.transcode(data, args.context)
        except SyntaxError:
            raise OSError(f"{source} is not a LIC file") from None
    write(locate(target), coded, locate(target.resolve().parent))
    context = container.Reader(BytesIO(coded)).header.context
    change = 100 * (len(coded) / len(data) - 1)
    print(f"{source} -> {target}: {len(data)} -> {len(coded)} bytes ({change:+.1f} %), context {context}")
