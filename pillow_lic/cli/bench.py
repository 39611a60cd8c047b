"""``lic bench``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pillow_lic
from pillow_lic.cli.common import KNOWN_CONTEXTS, UsageError, positive
from pillow_lic.extras import need
from pillow_lic.options import DEFAULT_CONTEXT, EncoderOptions

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
    parser.add_argument("--quantizer", help="quantiser to encode with")
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

    from tqdm import tqdm

    from pillow_lic.bench import codecs, contexts, measure, report, variants
    from pillow_lic.distortions import MS_SSIM_SIDE

    try:
        pillow_lic.set_defaults(model=args.model, context=args.context, quantizer=args.quantizer, effort=args.effort)
        lic = replace(codecs.LIC, values=tuple(args.qualities or codecs.LIC.values))
        for quality in lic.values:
            EncoderOptions(quality=quality)
        if args.variants:
            selected = [variants.codec_of(text, lic.values) for text in args.variants]
        else:
            selected = [lic, *codecs.chosen(args.codecs)[1:]]
    except ValueError as error:
        raise UsageError(str(error)) from None
    with tqdm(unit="file", desc="bench", delay=2) as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if args.contexts:
            print(contexts.text(contexts.compare(args.folder, args.model, on_step, images=args.images)))
            return
        measurements = measure.measure_folder(args.folder, selected, on_step, images=args.images, side=args.crop)
    if args.variants:
        report.write_json(Path(args.output), selected, measurements)  # first: it is what took the time
        print(variants.text(variants.compare(measurements, selected)))
        return
    points = {c.name: measure.mean_points(measurements, c) for c in selected}
    for codec in selected:
        print(report.points_text(codec, points[codec.name]) + "\n")
    output = Path(args.output)
    report.write_json(output, selected, measurements)
    published, published_similarity = report.published_curves(Path(args.reference)) if args.reference else ({}, {})
    psnr = {name: report.psnr_curve(p) for name, p in points.items()}
    similarity = {name: report.ms_ssim_curve(p) for name, p in points.items()}
    others = {name: curve for name, curve in psnr.items() if name != "LIC"}
    table = report.bd_table(psnr["LIC"], others | published)
    table_similarity = {}
    if similarity["LIC"]:
        others_similarity = {name: curve for name, curve in similarity.items() if name != "LIC" and curve}
        table_similarity = report.bd_table(similarity["LIC"], others_similarity | published_similarity)
    else:
        print(f"no MS-SSIM: it needs pictures of {MS_SSIM_SIDE} pixels a side", file=sys.stderr)
    print(report.bd_text(codecs.LIC.describe(), table, table_similarity))
    found = report.per_image_bd(measurements, "AVIF").items() if "AVIF" in others else ()
    if by_image := sorted((item for item in found if item[1] == item[1]), key=lambda item: item[1]):  # not NaN
        print(f"against AVIF by image: best {by_image[0][1]:+.1f} % ({by_image[0][0]}), "
              f"worst {by_image[-1][1]:+.1f} % ({by_image[-1][0]})")  # fmt: skip
    title = f"{len({m.image for m in measurements})} images of {Path(args.folder).name}"
    report.write_plot(output / "psnr.png", psnr | published, "PSNR, dB", title)
    if similarity["LIC"]:
        report.write_plot(
            output / "ms-ssim.png",
            {n: c for n, c in similarity.items() if c} | published_similarity,
            "MS-SSIM, dB",
            title,
        )
    print(f"results in {output}", file=sys.stderr)


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
    import torch
    from tqdm import tqdm

    from pillow_lic.bench import scaling, stages, throughput
    from pillow_lic.training.data import image_files

    folder = Path(args.folder)
    reports = []
    if args.profile:
        reports.append(stages.text(stages.profile(stages.photographs(image_files(folder), 4))))
    if args.cold_start:
        reports.append(throughput.first_picture(folder))
    if args.throughput:
        with tqdm(unit="run", desc="throughput", delay=2) as bar:

            def on_step(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            reports.append(throughput.compare(folder, args.throughput, args.jobs, on_step))
        if torch.cuda.is_available():
            reports.append(throughput.on_cuda(folder))
    if args.scaling:
        files = scaling.by_files(folder, scaling.FILES, args.jobs)
        sizes = scaling.by_size(folder, scaling.SIDES)
        scaling.plot(Path(args.scaling), files, sizes)
        reports.append(scaling.text(files, sizes))
    print("\n\n".join(reports))
