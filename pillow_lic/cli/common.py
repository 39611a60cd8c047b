"""What commands share: errors of usage, encoder options, a progress bar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
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


def file_name(text: str) -> str:
    """The name of a file or folder, for a parser."""
    if text == "-":
        raise argparse.ArgumentTypeError("standard input and output are no files to convert; ./- is one called '-'")
    return text


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """The encoder's options as options of a command."""
    group = parser.add_argument_group(
        "encoder options (for a .lic target; --device and --threads for reading .lic, too)"
    )
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
    group.add_argument(
        "--effort",
        type=int,
        help="0 (fast, the default) to 9: 1 takes two to three times as long, 9 two thousand times",
    )
    group.add_argument("--tune", help=f"what counts as good: {', '.join(TUNES)}; default {TUNES[0]}")
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
def bar(task: str, unit: str = "", delay: float = 0) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, after ``delay`` seconds: a function to be told how much is done, of how much."""
    from tqdm import tqdm

    # tqdm looks for a terminal itself (None), but not whether there is any stderr.
    with tqdm(unit=unit, desc=task, delay=delay, leave=False, disable=None if sys.stderr else True) as shown:

        def on_progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield on_progress


@contextmanager
def progress(task: str) -> Iterator[None]:
    """A bar over the tiles of whatever LIC codes or decodes, once that takes two seconds."""
    from pillow_lic import codec

    with bar(task, delay=2) as on_progress, codec.reporting_to(on_progress):
        yield
