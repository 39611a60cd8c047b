"""``lic train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from pillow_lic.cli.common import UsageError, positive


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("train", help="train a model", description=run.__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="a .toml file; see docs/training.md")
    parser.add_argument("--data", required=True, metavar="DIR", help="training images, searched recursively")
    parser.add_argument("--validation", metavar="DIR", help="images to measure the result on")
    parser.add_argument("--output", default="model.safetensors", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--run", dest="folder", default="runs", metavar="DIR",
                       help="checkpoint and log; a run found there is continued (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--start",
        metavar="FILE",
        action="append",
        type=Path,
        default=[],
        help="begin with another run's weights, its weights.pt or checkpoint.pt, or with a model's, its .safetensors"
        " file or its name; given twice, what the first lacks comes from the second",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--threads", type=positive, help="CPU threads (all cores)")
    parser.add_argument("--max-steps", type=positive, metavar="N", help="dry run: stop after N steps")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES",
                       help="end this call early with a checkpoint; call again to go on")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train a model on a folder of images and write it with its manifest."""
    from pillow_lic.devices import is_full, is_no_memory
    from pillow_lic.training.recipe import load_recipe
    from pillow_lic.training.run import keep_memory, train

    try:
        recipe = load_recipe(args.recipe)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.max_steps is not None:
        recipe = recipe.limited(args.max_steps)
    keep_memory()
    try:
        train(recipe, args.data, Path(args.output), Path(args.folder), validation=args.validation,
              device=args.device, threads=args.threads, stop_after=args.stop_after, start=args.start)  # fmt: skip
    except RuntimeError as error:
        if is_no_memory(error) or is_full(error):
            raise MemoryError("not enough memory: smaller [batches] in the recipe take less") from error
        raise
