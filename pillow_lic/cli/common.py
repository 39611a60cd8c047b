"""What commands share: errors of usage, encoder options, a progress bar."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from pillow_lic.header import CONTEXTS, QUANTIZERS
from pillow_lic.options import DEFAULT_CONTEXT, DEFAULT_LATTICE, TARGETS, TUNES, EncoderOptions, options_from

ENCODER_OPTIONS = (
    "quality", *TARGETS, "context", "quantizer", "adaptive", "progressive", "effort", "tune", "model", "device",
    "threads",
)  # fmt: skip
KNOWN_CONTEXTS = ", ".join((*CONTEXTS, "auto"))


class UsageError(Exception):
    """The command line asks for something that makes no sense: exit code 2."""


def positive(text: str) -> int:
    """A whole number of at least 1, for a parser."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """The encoder's options as options of a command."""
    group = parser.add_argument_group("encoder options (for a .lic target)")
    group.add_argument("--quality", type=float, help="1 (smallest) to 8 (best); default 4")
    group.add_argument("--target-size", type=int, metavar="BYTES", help="the best picture in so many bytes")
    group.add_argument("--target-bpp", type=float, metavar="BITS", help="the best picture in so many bits a pixel")
    group.add_argument("--target-psnr", type=float, metavar="DB", help="the smallest file of so many dB")
    group.add_argument("--context", help=f"context model: {KNOWN_CONTEXTS}; default {DEFAULT_CONTEXT}")
    group.add_argument("--quantizer", help=f"{', '.join(QUANTIZERS)}; default {DEFAULT_LATTICE}")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--adaptive", action="store_true", default=None, help="bits where the picture looks worst")
    where.add_argument("--importance", dest="adaptive", action="store_const", const="importance",
                       help="bits where a network that was trained for it says")  # fmt: skip
    group.add_argument("--progressive", action="store_true", default=None, help="in scans: its beginning opens too")
    group.add_argument("--effort", type=int, help="0 (fast) to 9 (slow)")
    group.add_argument(
        "--tune", help=f"what the shipped models are trained for: {', '.join(TUNES)}; default {TUNES[0]}"
    )
    group.add_argument("--model", help="an installed model's name or a .safetensors file, instead of --tune")
    group.add_argument("--device", help="cpu, cuda, cuda:N; default: CUDA where there is one")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads for each picture; default: all, shared")


def encoder_options(args: argparse.Namespace) -> EncoderOptions:
    """The encoder options of a command line; ``UsageError`` if they make no sense."""
    try:
        return options_from({n: getattr(args, n) for n in ENCODER_OPTIONS if getattr(args, n) is not None})
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


@contextmanager
def progress(task: str) -> Iterator[None]:
    """A bar over the tiles of whatever LIC codes or decodes, once that takes two seconds."""
    from tqdm import tqdm

    from pillow_lic import codec

    with tqdm(unit="", desc=task, delay=2, leave=False, disable=None) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        with codec.reporting_to(on_progress):
            yield
