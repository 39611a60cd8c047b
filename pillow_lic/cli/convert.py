"""``lic convert``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from itertools import count
from pathlib import PurePath
from typing import TYPE_CHECKING

from pillow_lic.cli.common import UsageError, add_encoder_options, bar, encoder_options, file_name, positive, progress
from pillow_lic.options import EncoderOptions

if TYPE_CHECKING:
    from pillow_lic.batch import Summary
    from pillow_lic.batch.plan import Task

TO = ".lic"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("convert", help="convert to or from .lic", description=run.__doc__)
    parser.add_argument("sources", nargs="+", type=file_name, metavar="SOURCE",
                        help="an image that Pillow opens, or a folder; paths or URLs (s3://, zip://)")  # fmt: skip
    parser.add_argument("target", type=file_name, metavar="TARGET",
                        help="a file, whose extension decides the format, or a folder")  # fmt: skip
    add_encoder_options(parser)
    group = parser.add_argument_group("folders")
    group.add_argument("--to", default=TO, metavar="EXT",
                       help="format in the target folder; any but .lic converts .lic files (%(default)s)")  # fmt: skip
    group.add_argument("--jobs", type=positive, metavar="N", help="worker processes (one for each core)")
    group.add_argument("--engine", choices=("local", "dask"), default="local", help="where to work (%(default)s)")
    group.add_argument("--scheduler", metavar="ADDRESS", help="of the Dask cluster, such as tcp://host:8786")
    group.add_argument("--overwrite", action="store_true", help="convert what is done, too, and replace other files")
    group.add_argument("--keep-going", action="store_true", help="go on after a failure; exit code 1 in the end")
    group.add_argument("--dry-run", action="store_true", help="only print what would be converted")
    group.add_argument("--psnr", action="store_true", help="measure the PSNR of each file")
    group.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert images to or from .lic; EXIF, ICC profile and XMP go along.

    Of folders, the whole tree is converted into the target folder. What is done and unchanged is skipped:
    call the command again to go on after an interruption, or after files were added or changed.
    """
    from pillow_lic.batch.files import locate, reaching

    if (args.engine == "dask") != bool(args.scheduler):
        raise UsageError("--engine dask and --scheduler belong together")
    options = encoder_options(args)
    source, target = locate(args.sources[0]), locate(args.target)
    with reaching():
        folder = args.target.endswith(("/", os.sep)) or target.fs.isdir(target.path)
        several = folder or len(args.sources) > 1 or source.fs.isdir(source.path)
    if several:
        _convert_folders(args, options)
    else:
        _convert_file(args, options)


def _convert_file(args: argparse.Namespace, options: EncoderOptions) -> None:
    from pillow_lic import batch
    from pillow_lic.batch.files import locate, reaching
    from pillow_lic.batch.plan import Settings, Task
    from pillow_lic.batch.worker import convert_all

    if args.scheduler or args.to not in (TO, TO[1:]):
        raise UsageError("--engine, --scheduler and --to are for folders")
    (source,), target = args.sources, args.target
    try:
        suffix = batch.suffix_of(PurePath(target).suffix, read_back=args.psnr)
    except ValueError as error:
        raise UsageError(str(error)) from None
    task, summary = Task(locate(source), locate(target)), batch.Summary()
    with reaching():
        if task.source.info() is None:
            raise FileNotFoundError(f"there is no {task.source}")
        if not args.overwrite and _may_be_an_original(task) and task.target.info() is not None:
            raise FileExistsError(f"{target} is there; --overwrite replaces it")
    if args.dry_run:
        summary.planned = [(str(task.source), str(task.target))]
        _print(summary, as_json=args.json)
        return
    started = time.perf_counter()
    with progress("convert"):
        (result,) = convert_all([task], Settings(suffix, options, task.target.folder, psnr=args.psnr))
    summary.add(result)
    summary.seconds = time.perf_counter() - started
    if args.json:
        _print(summary, as_json=True)
    if result.error:
        raise OSError(f"{source}: {result.error}")
    if args.json:
        return
    bits = 8 * result.after / result.pixels
    quality = "" if result.psnr is None else f", {result.psnr:.2f} dB"
    print(f"{source} -> {target}: {result.before} -> {result.after} bytes, {bits:.4f} bpp{quality}")


def _may_be_an_original(task: Task) -> bool:
    """Whether the target is no .lic file made from a picture: `lic convert *.jpg` may name two of them."""
    return not task.target.name.lower().endswith(TO) or task.source.name.lower().endswith(TO)


def _convert_folders(args: argparse.Namespace, options: EncoderOptions) -> None:
    from pillow_lic import batch
    from pillow_lic.batch.worker import Result

    try:
        batch.suffix_of(args.to, read_back=args.psnr)
    except ValueError as error:
        raise UsageError(str(error)) from None
    done = count(1)
    with bar("convert", "file", delay=1) as on_progress:

        def on_result(result: Result, total: int) -> None:
            on_progress(next(done), total)

        summary = batch.convert(
            args.sources, args.target, to=args.to, options=options, jobs=args.jobs, scheduler=args.scheduler,
            overwrite=args.overwrite, keep_going=args.keep_going, dry_run=args.dry_run, psnr=args.psnr,
            on_result=on_result,
        )  # fmt: skip
    for failure in summary.failures:
        print(f"{failure.source}: {failure.error}", file=sys.stderr)
    _print(summary, as_json=args.json)
    if summary.failures:
        raise OSError(f"{len(summary.failures)} files could not be converted")


def _print(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary.as_dict(), indent=1))
        return
    for source, target in summary.planned:
        print(f"{source} -> {target}")
    print(summary.text())
