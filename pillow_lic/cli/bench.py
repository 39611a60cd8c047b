"""``lic bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pillow_lic
from pillow_lic.cli.common import KNOWN_CONTEXTS, UsageError, bar, positive
from pillow_lic.extras import need
from pillow_lic.header import QUANTIZERS
from pillow_lic.options import DEFAULT_CONTEXT, EncoderOptions

if TYPE_CHECKING:
    from pillow_lic.bench.codecs import Codec
    from pillow_lic.bench.measure import Measurement
    from pillow_lic.bench.report import Curve

COMPARED = ("model", "context", "quantizer", "effort", "images", "crop", "qualities", "codecs", "variants", "contexts")
"""Options of comparisons alone: what they compare, encode with, and take of each image."""

ALONE = {
    "contexts": ("context", "quantizer", "effort", "crop", "qualities", "codecs", "variants"),
    "variants": ("context", "quantizer", "effort", "codecs"),
}
"""What stands in for the comparison with other codecs, and the options that say nothing to it."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("bench", help="compare codecs on a folder of images", description=run.__doc__)
    parser.add_argument("folder", metavar="DIR", help="images to code, searched recursively")
    parser.add_argument("--codecs", nargs="+", metavar="NAME", help="besides lic: jpeg webp avif jpeg2000 jpegxl heic")
    parser.add_argument("--output", default="bench-results", metavar="DIR", help="JSON and plots (%(default)s)")
    parser.add_argument(
        "--reference", metavar="DIR", help="published curves for tables and plots, in CompressAI's layout"
    )
    parser.add_argument("--model", default="mse", help="model to encode with (%(default)s)")
    parser.add_argument("--context", help=f"context model to encode with: {KNOWN_CONTEXTS}; default {DEFAULT_CONTEXT}")
    parser.add_argument("--quantizer", help=f"quantiser to encode with: {', '.join(QUANTIZERS)}")
    parser.add_argument("--effort", type=int, default=0, help="effort to encode with, 0 to 9 (%(default)s)")
    parser.add_argument("--images", type=positive, metavar="N", help="only so many images, evenly spread")
    parser.add_argument(
        "--crop", type=positive, metavar="SIDE", help="only the middle of each image, so many pixels a side"
    )
    parser.add_argument("--qualities", type=float, nargs="+", metavar="Q",
                        help="qualities to encode with; default 1 to 8")  # fmt: skip
    parser.add_argument("--variants", nargs="+", metavar="VARIANT",
                        help="compare these with the first of them instead: [CONTEXT/]QUANTIZER[:EFFORT]")  # fmt: skip
    parser.add_argument("--contexts", action="store_true",
                       help="compare the model's context models with each other instead")  # fmt: skip
    group = parser.add_argument_group("speed, instead of the comparison")
    group.add_argument("--throughput", type=positive, metavar="N",
                       help="worker processes beside a plain loop on N photographs; CUDA too")  # fmt: skip
    group.add_argument("--jobs", type=positive, default=2, help="worker processes (%(default)s)")
    group.add_argument("--profile", action="store_true", help="where the time goes, by stage")
    group.add_argument("--cold-start", action="store_true", help="process start to the first pixels")
    group.add_argument("--scaling", metavar="PNG", help="plot time by files, time and memory by megapixels")
    parser.set_defaults(run=run, unsaid={name: parser.get_default(name) for name in COMPARED})


def run(args: argparse.Namespace) -> None:
    """Code every image of a folder with every codec and report sizes, distortions, times and BD-rates."""
    for one, unheard in ALONE.items():
        if getattr(args, one) and (given := [name for name in unheard if getattr(args, name)]):
            raise UsageError(f"--{one} takes no --{given[0].replace('_', '-')}")
    need("bench", *_packages(args))  # not after hours of work
    if _is_speed(args):
        given = [name for name, value in args.unsaid.items() if getattr(args, name) != value]
        if given:
            raise UsageError(f"speed is measured with the defaults, without --{given[0]}")
        _speed(args)
        return

    if args.reference and not Path(args.reference).is_dir():
        raise UsageError(f"--reference: there is no folder {args.reference}")
    try:
        pillow_lic.set_defaults(model=args.model, context=args.context, quantizer=args.quantizer, effort=args.effort)
        selected = _selected(args)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.contexts:
        from pillow_lic.bench import contexts

        with bar("bench", "file", delay=2) as on_step:
            found = contexts.compare(args.folder, args.model, on_step, images=args.images)
        print(contexts.text(found))
        return

    from pillow_lic.bench import measure, report, variants

    Path(args.output).mkdir(parents=True, exist_ok=True)  # not after hours of work
    measurements: list[Measurement] = []
    try:
        with bar("bench", "file", delay=2) as on_step:
            measurements.extend(
                measure.measure_folder(args.folder, selected, on_step, images=args.images, side=args.crop)
            )
    finally:  # also of what a damaged picture or Ctrl-C ends: it is what took the time
        if measurements:
            report.write_json(Path(args.output), selected, measurements)
    if args.variants:
        print(variants.text(variants.compare(measurements, selected)))
        return
    _print_codecs(args, selected, measurements)


def _selected(args: argparse.Namespace) -> list[Codec]:
    """The codecs or variants to compare; ``ValueError`` if one makes no sense."""
    from pillow_lic.bench import codecs, variants

    lic = replace(codecs.LIC, values=tuple(args.qualities or codecs.LIC.values))
    for quality in lic.values:
        EncoderOptions(quality=quality)
    if args.variants:
        return [variants.codec_of(text, lic.values) for text in args.variants]
    return [lic, *codecs.chosen(args.codecs)[1:]]


def _print_codecs(args: argparse.Namespace, selected: Sequence[Codec], measurements: Sequence[Measurement]) -> None:
    """Tables and plots of LIC beside other codecs and published curves."""
    from pillow_lic.bench import codecs, measure, report
    from pillow_lic.distortions import MS_SSIM_SIDE

    output = Path(args.output)
    points = {c.name: measure.mean_points(measurements, c) for c in selected}
    for codec in selected:
        print(report.points_text(codec, points[codec.name]) + "\n")
    published, published_similarity = report.published_curves(Path(args.reference)) if args.reference else ({}, {})
    psnr = {name: report.psnr_curve(p) for name, p in points.items()}
    similarity = {name: curve for name, p in points.items() if (curve := report.ms_ssim_curve(p))}
    table, table_similarity = _against_lic(psnr, published), _against_lic(similarity, published_similarity)
    if not similarity:
        print(f"no MS-SSIM: it needs pictures of {MS_SSIM_SIDE} pixels a side", file=sys.stderr)
    print(report.bd_text(codecs.LIC.describe(), table, table_similarity))
    found = report.per_image_bd(measurements, "AVIF").items() if "AVIF" in psnr else ()
    if by_image := sorted((item for item in found if item[1] == item[1]), key=lambda item: item[1]):  # not NaN
        print(f"against AVIF by image: best {by_image[0][1]:+.1f} % ({by_image[0][0]}), "
              f"worst {by_image[-1][1]:+.1f} % ({by_image[-1][0]})")  # fmt: skip
    title = f"{len({m.image for m in measurements})} images of {Path(args.folder).name}"
    report.write_plot(output / "psnr.png", psnr | published, "PSNR, dB", title)
    if similarity:
        report.write_plot(output / "ms-ssim.png", similarity | published_similarity, "MS-SSIM, dB", title)
    print(f"results in {output}", file=sys.stderr)


def _against_lic(measured: Mapping[str, Curve], published: Mapping[str, Curve]) -> dict[str, float]:
    """BD-rates of LIC against each other codec, in %; none where LIC itself has no curve."""
    from pillow_lic.bench import report

    if "LIC" not in measured:
        return {}
    return report.bd_table(measured["LIC"], {n: c for n, c in measured.items() if n != "LIC"} | dict(published))


def _is_speed(args: argparse.Namespace) -> bool:
    return bool(args.throughput or args.profile or args.cold_start or args.scaling)


def _packages(args: argparse.Namespace) -> list[str]:
    """Those of the extra that what is asked for needs."""
    if _is_speed(args):
        return ["matplotlib"] * bool(args.scaling) + ["psutil"] * bool(args.scaling or args.throughput)
    if args.contexts:
        return []
    return ["bjontegaard"] if args.variants else ["bjontegaard", "matplotlib"]


def _speed(args: argparse.Namespace) -> None:
    if (args.throughput or args.scaling) and not sys.platform.startswith("linux"):
        raise UsageError("--throughput and --scaling measure memory as Linux tells it")
    import torch

    from pillow_lic.bench import scaling, stages, throughput
    from pillow_lic.pictures import image_files

    pillow_lic.set_defaults(device="cpu")  # a GPU has figures of its own
    folder = Path(args.folder)
    if args.profile:
        _tell(stages.text(stages.profile(stages.photographs(image_files(folder), 4))))
    if args.cold_start:
        _tell(throughput.first_picture(folder))
    if args.throughput:
        with bar("throughput", "run", delay=2) as on_step:
            found = throughput.compare(folder, args.throughput, args.jobs, on_step)
        _tell(found)
        if torch.cuda.is_available():
            _tell(throughput.on_cuda(folder))
    if args.scaling:
        files = scaling.by_files(folder, scaling.FILES, args.jobs)
        sizes = scaling.by_size(folder, scaling.SIDES)
        _tell(scaling.text(files, sizes))
        scaling.plot(Path(args.scaling), files, sizes)


def _tell(report: str) -> None:
    """Print one of several reports, each as soon as it is there."""
    print(report + "\n", flush=True)
