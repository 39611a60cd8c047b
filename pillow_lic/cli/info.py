"""``lic info``."""

from __future__ import annotations

import argparse
import os

from pillow_lic import container
from pillow_lic.cli.common import file_name
from pillow_lic.options import quality_of


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("info", help="show what a .lic file holds", description=run.__doc__)
    parser.add_argument("files", nargs="+", type=file_name, metavar="FILE")
    parser.add_argument("--verify", action="store_true", help="compare the checksums of the whole file too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print size, coding and metadata of .lic files; those that are damaged are told of, and the others shown."""
    failures = []
    for name in args.files:
        try:
            rows = _about(name, verify=args.verify)
        except OSError as error:
            failures.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        print(name)
        for key, value in rows.items():
            print(f"  {key:<9} {value}")
    if failures:
        raise OSError("\nlic info: ".join(failures))


def _about(name: str, *, verify: bool) -> dict[str, str]:
    """What there is to tell of a file, by heading."""
    with open(name, "rb") as fp:
        try:
            reader = container.Reader(fp)
        except SyntaxError:
            raise OSError(f"{name} is not a LIC file") from None
        metadata, header = reader.metadata(), reader.header
        if verify:
            reader.verify()
    size, pixels = os.path.getsize(name), header.width * header.height * header.frames
    frames = f", {header.frames} frames" if header.frames > 1 else ""
    rows = {
        "size": f"{header.width} x {header.height}, {header.mode}{frames}",
        "file": f"{size} bytes, {8 * size / pixels:.4f} bpp",
        "quality": f"{quality_of(header.quality_code):g}",
        "coding": f"context {header.context}, quantizer {header.quantizer}",
        "tiles": f"{header.tiles} of {header.tile} pixels" if header.tile else "1",
        "model": f"{header.model_id.hex()} {header.model_name}".rstrip(),
        "metadata": ", ".join(f"{k} ({len(v)} bytes)" for k, v in metadata.items()) or "none",
    }
    return rows | ({"checksums": "right"} if verify else {})
