"""``lic models``: import, list, show, verify."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pillow_lic.cli.common import UsageError
from pillow_lic.header import QUANTIZERS
from pillow_lic.options import quality_of

if TYPE_CHECKING:
    from pillow_lic.training.compressai import Imported


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("models", help="list, check and import models", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    names = actions.add_parser("list", help="installed models", description=list_models.__doc__)
    names.set_defaults(run=list_models)
    show = actions.add_parser("show", help="what a model is", description=show_model.__doc__)
    show.add_argument("name", metavar="NAME", help="an installed model's name or a .safetensors file")
    show.set_defaults(run=show_model)
    verify = actions.add_parser("verify", help="check model files", description=verify_models.__doc__)
    verify.add_argument("names", nargs="*", metavar="NAME", help="models or .safetensors files; all installed ones")
    verify.set_defaults(run=verify_models)
    imported = actions.add_parser(
        "import", help="turn CompressAI checkpoints into a model", description=run_import.__doc__
    )
    imported.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT",
                          help="QUALITY=FILE, or a file named like mbt2018-mean-3-12345678.pth.tar")  # fmt: skip
    imported.add_argument(
        "--architecture",
        required=True,
        metavar="NAME",
        help="bmshj2018-factorized, bmshj2018-hyperprior, mbt2018-mean, mbt2018, cheng2020-anchor",
    )
    imported.add_argument(
        "--output", required=True, metavar="FILE", help="a .safetensors file; its manifest goes beside it"
    )
    imported.add_argument("--images", metavar="DIR",
                          help="pictures to calibrate and measure on; without it, noise like photographs")  # fmt: skip
    imported.set_defaults(run=run_import)


def list_models(args: argparse.Namespace) -> None:
    """List installed models: name, identity, architecture, and the folder it lies in, first found first."""
    from pillow_lic.models.compressai.family import Family
    from pillow_lic.models.finding import installed
    from pillow_lic.models.loading import load_model

    seen: set[str] = set()
    for path in installed():
        hidden = "  (hidden by the one above)" if path.stem in seen else ""
        seen.add(path.stem)  # damaged ones hide others too
        try:
            model = load_model(str(path))
        except (ValueError, OSError) as error:
            print(f"{path.stem:<20} {error}{hidden}")
            continue
        kind = model.architecture if isinstance(model, Family) else "native"
        print(f"{path.stem:<20} {model.identity.hex()}  {kind:<21} {path.parent}{hidden}")


def show_model(args: argparse.Namespace) -> None:
    """Show a model's identity, qualities, contexts, quantisers, and what its manifest says of its making."""
    from pillow_lic.models.compressai.family import Family
    from pillow_lic.models.finding import manifest_of
    from pillow_lic.models.loading import load_model

    model = load_model(args.name)
    manifest = manifest_of(model.path)
    rows = {"file": str(model.path), "identity": model.identity.hex()}
    if isinstance(model, Family):
        rows["architecture"] = model.architecture
        rows["qualities"] = ", ".join(f"{quality_of(s.code):g}" for s in model.stops)
        rows["channels"] = ", ".join(f"{s.channels} ({s.latents} latents)" for s in model.stops)
        rows["contexts"] = ", ".join(model.contexts)
        rows["quantizers"] = "scalar"
    else:
        rows["architecture"] = f"native, {model.arch.channels} channels, {model.arch.latents} latents"
        rows["qualities"] = "1 to 8, continuous"
        rows["contexts"] = ", ".join(("none", *model.contexts))
        rows["quantizers"] = ", ".join(QUANTIZERS) if model.has_lattice else "scalar"
        rows["trained for"] = model.distortion
    for key in ("source", "calibration"):
        if key in manifest:
            rows[key] = str(manifest[key])
    print(model.path.stem)
    for key, value in rows.items():
        print(f"  {key:<13} {value}")
    said = manifest.get("qualities")
    for entry in said if isinstance(said, list) else []:
        if not isinstance(entry, dict) or not {"quality", "checkpoint", "cost_percent"} <= entry.keys():
            continue
        print(f"  quality {entry['quality']:<5g} {entry['checkpoint']}, exactness costs {entry['cost_percent']:+.3f} %")


def verify_models(args: argparse.Namespace) -> None:
    """Read every network of each model, check that its arithmetic is exact, and compare it with its manifest."""
    from pillow_lic.models.finding import installed, manifest_of
    from pillow_lic.models.loading import load_model, verify

    failures = []
    for name in args.names or [str(p) for p in installed()]:
        try:
            model = load_model(name)
            verify(model)
        except (ValueError, OSError) as error:
            failures.append(str(error))
            continue
        said = manifest_of(model.path).get("identity")
        if said not in (None, model.identity.hex()):
            failures.append(f"{model.path} is not the file of its manifest, which says {said}")
            continue
        print(
            f"{model.path}: {model.identity.hex()}, {'as its manifest says' if said else 'without a manifest'}, exact"
        )
    if failures:
        raise OSError("\nlic models: ".join(failures))


def run_import(args: argparse.Namespace) -> None:
    """Turn CompressAI checkpoints of one architecture, one for each quality, into a model file, and report what
    exact arithmetic costs.
    """
    from pillow_lic.models.compressai.networks import ARCHITECTURES
    from pillow_lic.training.compressai import MOST_COST, import_checkpoints, qualities_of

    if args.architecture not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {args.architecture!r}; known: {', '.join(ARCHITECTURES)}")
    if Path(args.output).suffix != ".safetensors":
        raise UsageError(f"--output must end in .safetensors, not {args.output!r}")
    try:
        qualities_of(args.checkpoints)
    except ValueError as error:
        raise UsageError(str(error)) from None

    def tell(done: Imported) -> None:
        print(f"quality {done.quality:g}: {done.checkpoint}, {done.channels} channels, {done.latents} latents, "
              f"exactness costs {done.cost:+.3f} % of the rate")  # fmt: skip
        if done.cost > MOST_COST:
            print(f"lic models: quality {done.quality:g} pays more than {MOST_COST:g} % for exactness; "
                  "give --images that are like what it will code", file=sys.stderr)  # fmt: skip

    import_checkpoints(args.checkpoints, args.architecture, args.output, args.images, tell)
    print(f"wrote {args.output} and {Path(args.output).with_suffix('.json')}")
