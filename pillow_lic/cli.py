"""The command ``lic``: info, convert, transcode, bench, train.

Results go to stdout, messages and progress to stderr.  Exit codes: 0 success, 1 failure, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageSequence

import pillow_lic
from pillow_lic import container
from pillow_lic.options import DEFAULT_CONTEXT, TARGETS, TUNES, EncoderOptions, options_from, quality_of

EXTENSION = ".lic"


_ENCODER_OPTIONS = ("quality", *TARGETS, "context", "quantizer", "effort", "tune", "model", "device")
_CONTEXTS = ", ".join((*container.CONTEXTS, "auto"))


class UsageError(Exception):
    """The command line asks for something that makes no sense: exit code 2."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except UsageError as error:
        print(f"lic {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, TypeError, ImportError, ArithmeticError, Image.DecompressionBombError) as error:
        print(f"lic {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lic {args.command}: interrupted", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lic", description="Learned image codec: .lic files.")
    parser.add_argument("--version", action="version", version=f"pillow-lic {pillow_lic.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    info = commands.add_parser("info", help="show what a .lic file holds", description=_info.__doc__)
    info.add_argument("files", nargs="+", metavar="FILE")
    info.add_argument("--verify", action="store_true", help="compare the checksums of the whole file too")
    info.set_defaults(run=_info)

    convert = commands.add_parser("convert", help="convert to or from .lic", description=_convert.__doc__)
    convert.add_argument("source", metavar="SOURCE", help="any image that Pillow opens, or a .lic file")
    convert.add_argument("target", metavar="TARGET", help="its extension decides the format")
    _add_encoder_options(convert)
    convert.set_defaults(run=_convert)

    transcode = commands.add_parser(
        "transcode", help="code a .lic file anew, same pixels", description=_transcode.__doc__
    )
    transcode.add_argument("source", metavar="SOURCE", help="a .lic file")
    transcode.add_argument("target", metavar="TARGET", help="where to write the new one; may be the source")
    transcode.add_argument("--context", default="auto", help=f"{_CONTEXTS}; default auto, the smallest")
    transcode.set_defaults(run=_transcode)

    bench = commands.add_parser("bench", help="compare codecs on a folder of images", description=_bench.__doc__)
    bench.add_argument("folder", metavar="DIR", help="images to code, searched recursively")
    bench.add_argument("--codecs", nargs="+", metavar="NAME", help="besides lic: jpeg webp avif jpeg2000 jpegxl heic")
    bench.add_argument("--output", default="bench-results", metavar="DIR", help="JSON and plots (%(default)s)")
    bench.add_argument("--reference", metavar="DIR", help="published curves for the plot, in CompressAI's layout")
    bench.add_argument("--model", default="mse", help="model to encode with (%(default)s)")
    bench.add_argument("--context", help=f"context model to encode with: {_CONTEXTS}; default {DEFAULT_CONTEXT}")
    bench.add_argument("--contexts", action="store_true",
                       help="compare the model's context models with each other instead")  # fmt: skip
    bench.set_defaults(run=_bench)

    train = commands.add_parser("train", help="train a model", description=_train.__doc__)
    train.add_argument("recipe", metavar="RECIPE", help="a .toml file; see docs/training.md")
    train.add_argument("--data", required=True, metavar="DIR", help="training images, searched recursively")
    train.add_argument("--validation", metavar="DIR", help="images to measure the result on")
    train.add_argument("--output", default="model.safetensors", metavar="FILE", help="(%(default)s)")
    train.add_argument("--run", dest="folder", default="runs", metavar="DIR",
                       help="checkpoint and log; a run found there is continued (%(default)s)")  # fmt: skip
    train.add_argument(
        "--start", metavar="FILE", help="begin with another run's weights: its weights.pt or checkpoint.pt"
    )
    train.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    train.add_argument("--threads", type=int, help="CPU threads (all cores)")
    train.add_argument("--max-steps", type=int, metavar="N", help="dry run: stop after N steps")
    train.add_argument("--stop-after", type=float, metavar="MINUTES",
                       help="end this call early with a checkpoint; call again to go on")  # fmt: skip
    train.set_defaults(run=_train)

    hook = commands.add_parser("autoload", help="know .lic without an import", description=_autoload.__doc__)
    hook.add_argument("state", choices=("on", "off", "status"))
    hook.set_defaults(run=_autoload)
    return parser


def _add_encoder_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("encoder options (for a .lic target)")
    group.add_argument("--quality", type=float, help="1 (smallest) to 8 (best); default 4")
    group.add_argument("--target-size", type=int, metavar="BYTES", help="the best picture in so many bytes")
    group.add_argument("--target-bpp", type=float, metavar="BITS", help="the best picture in so many bits a pixel")
    group.add_argument("--target-psnr", type=float, metavar="DB", help="the smallest file of so many dB")
    group.add_argument("--context", help=f"context model: {_CONTEXTS}; default {DEFAULT_CONTEXT}")
    group.add_argument("--quantizer", help="scalar, e8; default e8 where the model has it")
    group.add_argument("--effort", type=int, help="0 (fast) to 9 (slow)")
    group.add_argument(
        "--tune", help=f"what the shipped models are trained for: {', '.join(TUNES)}; default {TUNES[0]}"
    )
    group.add_argument("--model", help="an installed model's name or a .safetensors file, instead of --tune")
    group.add_argument("--device", help="cpu, cuda, cuda:N; default: CUDA where there is one")


def _encoder_options(args: argparse.Namespace) -> EncoderOptions:
    try:
        return options_from({n: getattr(args, n) for n in _ENCODER_OPTIONS if getattr(args, n) is not None})
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def _autoload(args: argparse.Namespace) -> None:
    """Let every script of this Python environment open and save .lic files without importing pillow_lic.

    "on" writes a hook into the environment's site-packages that Python runs when it starts: once a script
    imports Pillow or imageio, .lic is registered. "off" removes it.
    """
    from pillow_lic import autoload

    if args.state != "status":
        (autoload.turn_on if args.state == "on" else autoload.turn_off)()
    path = autoload.hook()
    print(f"autoload is {'on' if path.exists() else 'off'} ({path})")


def _info(args: argparse.Namespace) -> None:
    """Print size, coding and metadata of .lic files."""
    for name in args.files:
        with open(name, "rb") as fp:
            try:
                reader = container.Reader(fp)
            except SyntaxError:
                raise OSError(f"{name} is not a LIC file") from None
            header, metadata = reader.header, reader.metadata()
            if args.verify:
                reader.verify()
        size = os.path.getsize(name)
        rows = {
            "size": f"{header.width} x {header.height}, {header.mode}",
            "file": f"{size} bytes, {8 * size / (header.width * header.height):.4f} bpp",
            "quality": f"{quality_of(header.quality_code):g}",
            "coding": f"context {header.context}, quantizer {header.quantizer}",
            "tiles": f"{header.tiles} of {header.tile} pixels" if header.tile else "1",
            "model": header.model_id.hex(),
            "metadata": ", ".join(f"{k} ({len(v)} bytes)" for k, v in metadata.items()) or "none",
        }
        print(name)
        for key, value in rows.items():
            print(f"  {key:<9} {value}")
        if args.verify:
            print("  checksums right")


def _convert(args: argparse.Namespace) -> None:
    """Convert an image to or from .lic; EXIF, ICC profile and XMP go along."""
    source, target = Path(args.source), Path(args.target)
    suffix = target.suffix.lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise UsageError(f"no format that can be written has the extension {target.suffix!r}")
    options: dict[str, Any] = {}
    if suffix == EXTENSION:
        opts = _encoder_options(args)
        options = {n: getattr(opts, n) for n in _ENCODER_OPTIONS}
    with _progress("convert"), Image.open(source) as opened:
        opened.load()  # some formats keep their metadata behind the pixels
        options |= {k: opened.info[k] for k in container.METADATA if opened.info.get(k)}
        if "exif" not in options and (exif := opened.getexif()):
            options["exif"] = exif.tobytes()
        image: Image.Image = opened
        if getattr(image, "is_animated", False) and Image.registered_extensions()[suffix] in Image.SAVE_ALL:
            durations = [frame.info.get("duration", 0) for frame in ImageSequence.Iterator(image)]
            options |= {"save_all": True, "duration": durations, "loop": image.info.get("loop", 0)}
        with _atomically(target) as fp:
            image.save(fp, Image.registered_extensions()[suffix], **options)
        area = image.width * image.height
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{source} -> {target}: {before} -> {after} bytes, {8 * after / area:.4f} bpp")


@contextmanager
def _progress(task: str) -> Iterator[None]:
    """A bar over the tiles of whatever LIC codes or decodes, once that takes two seconds."""
    from tqdm import tqdm

    from pillow_lic import codec

    with tqdm(unit="", desc=task, delay=2, leave=False) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        token = codec.on_progress.set(on_progress)
        try:
            yield
        finally:
            codec.on_progress.reset(token)


def _transcode(args: argparse.Namespace) -> None:
    """Code a .lic file with another context model: another size, identical pixels and metadata."""
    source, target = Path(args.source), Path(args.target)
    try:
        EncoderOptions(context=args.context)
    except ValueError as error:
        raise UsageError(str(error)) from None
    data = source.read_bytes()
    with _progress("transcode"):
        try:
            coded = pillow_lic.transcode(data, args.context)
        except SyntaxError:
            raise OSError(f"{source} is not a LIC file") from None
    with _atomically(target) as fp:
        fp.write(coded)
    context = container.Reader(BytesIO(coded)).header.context
    change = 100 * (len(coded) / len(data) - 1)
    print(f"{source} -> {target}: {len(data)} -> {len(coded)} bytes ({change:+.1f} %), context {context}")


@contextmanager
def _atomically(target: Path) -> Iterator[IO[bytes]]:
    """Write beside the target and rename: the target is the old file or the whole new one."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "w+b") as fp:
            yield fp
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _bench(args: argparse.Namespace) -> None:
    """Code every image of a folder with every codec and report sizes, distortions, times and BD-rates."""
    from tqdm import tqdm

    from pillow_lic.bench import codecs, contexts, measure, report

    try:
        pillow_lic.set_defaults(model=args.model, context=args.context)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        selected = codecs.chosen(args.codecs)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with tqdm(unit="file", desc="bench", delay=2) as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if args.contexts:
            print(contexts.text(contexts.compare(args.folder, args.model, on_step)))
            return
        measurements = measure.measure_folder(args.folder, selected, on_step)
    points = {c.name: measure.mean_points(measurements, c) for c in selected}
    for codec in selected:
        print(report.points_text(codec, points[codec.name]) + "\n")
    output = Path(args.output)
    report.write_json(output, selected, measurements)
    published = report.published_curves(Path(args.reference)) if args.reference else {}
    psnr = {name: report.psnr_curve(p) for name, p in points.items()}
    similarity = {name: report.ms_ssim_curve(p) for name, p in points.items()}
    others = {name: curve for name, curve in psnr.items() if name != "LIC"}
    table = report.bd_table(psnr["LIC"], others | published)
    table_similarity = report.bd_table(similarity["LIC"], {n: c for n, c in similarity.items() if n != "LIC" and c})
    print(report.bd_text(codecs.LIC.describe(), table, table_similarity))
    if "AVIF" in others:
        by_image = sorted(report.per_image_bd(measurements, "AVIF").items(), key=lambda item: item[1])
        print(f"against AVIF by image: best {by_image[0][1]:+.1f} % ({by_image[0][0]}), "
              f"worst {by_image[-1][1]:+.1f} % ({by_image[-1][0]})")  # fmt: skip
    title = f"{len({m.image for m in measurements})} images of {Path(args.folder).name}"
    report.write_plot(output / "psnr.png", psnr | published, "PSNR, dB", title)
    if similarity["LIC"]:
        report.write_plot(output / "ms-ssim.png", {n: c for n, c in similarity.items() if c}, "MS-SSIM, dB", title)
    print(f"results in {output}", file=sys.stderr)


def _train(args: argparse.Namespace) -> None:
    """Train a model on a folder of images and write it with its manifest."""
    from pillow_lic.training.recipe import load_recipe
    from pillow_lic.training.run import train

    try:
        recipe = load_recipe(args.recipe)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.max_steps is not None:
        recipe = recipe.limited(args.max_steps)
    start = Path(args.start) if args.start else None
    train(recipe, args.data, Path(args.output), Path(args.folder), validation=args.validation,
          device=args.device, threads=args.threads, stop_after=args.stop_after, start=start)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
