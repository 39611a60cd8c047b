"""``lic convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from pillow_lic import container
from pillow_lic.cli.common import (
    ENCODER_OPTIONS,
    UsageError,
    add_encoder_options,
    atomically,
    encoder_options,
    progress,
)

EXTENSION = ".lic"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("convert", help="convert to or from .lic", description=run.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="any image that Pillow opens, or a .lic file")
    parser.add_argument("target", metavar="TARGET", help="its extension decides the format")
    add_encoder_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert an image to or from .lic; EXIF, ICC profile and XMP go along."""
    source, target = Path(args.source), Path(args.target)
    suffix = target.suffix.lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise UsageError(f"no format that can be written has the extension {target.suffix!r}")
    options: dict[str, Any] = {}
    if suffix == EXTENSION:
        opts = encoder_options(args)
        options = {n: getattr(opts, n) for n in ENCODER_OPTIONS}
    with progress("convert"), Image.open(source) as opened:
        opened.load()  # some formats keep their metadata behind the pixels
        options |= {k: opened.info[k] for k in container.METADATA if opened.info.get(k)}
        if "exif" not in options and (exif := opened.getexif()):
            options["exif"] = exif.tobytes()
        image: Image.Image = opened
        if getattr(image, "is_animated", False) and Image.registered_extensions()[suffix] in Image.SAVE_ALL:
            durations = [frame.info.get("duration", 0) for frame in ImageSequence.Iterator(image)]
            options |= {"save_all": True, "duration": durations, "loop": image.info.get("loop", 0)}
        with atomically(target) as fp:
            image.save(fp, Image.registered_extensions()[suffix], **options)
        area = image.width * image.height
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{source} -> {target}: {before} -> {after} bytes, {8 * after / area:.4f} bpp")
