"""Exports a trained context model over the volume of latents, as a file beside its model's.

lic train recipes/mse-cpu-volume.toml --start WEIGHTS.pt --run RUN --data IMAGES --output RUN/whole.safetensors
python -m pillow_lic.training.volume MODEL.safetensors RUN/weights.pt IMAGES
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from pillow_lic.models.context.schedule import VOLUME, WHOLE
from pillow_lic.models.context.volume import VolumeContext
from pillow_lic.models.loading import Model, load_model
from pillow_lic.options import DEFAULT_LATTICE
from pillow_lic.training.export import write_volume
from pillow_lic.training.importing import load_state
from pillow_lic.training.probabilities import count_values, make_context_tables
from pillow_lic.training.recipe import recipe_from
from pillow_lic.training.run import seen_passes

IMAGES = 40
"""Training images whose symbols the probability tables are fitted to."""


def export_volume(model: Path, weights: Path, data: str | Path, images: int = IMAGES) -> None:
    """Write the context model of a run's weights beside a model; ``ValueError`` if there is none in them."""
    state = load_state(weights, "cpu", "average", "recipe")
    recipe = recipe_from(state["recipe"])
    if VOLUME not in recipe.contexts:
        raise ValueError(f"{weights} holds no context model over the volume")
    owner = load_model(str(model))
    if not isinstance(owner, Model) or owner.arch != recipe.model:
        raise ValueError(f"{model} has other networks than {weights}")
    context = VolumeContext(recipe.contexts[VOLUME], recipe.model)
    prefix = f"contexts.{VOLUME}."
    context.load_state_dict({k.removeprefix(prefix): v for k, v in state["average"].items() if k.startswith(prefix)})
    # Its networks with Gaussian tables tell which symbols the real tables will meet: beside a copy of the model, whose
    # own file stays as it is until the new one is whole.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trial = Path(shutil.copy(owner.path, folder))
        tried = replace(owner, path=trial, contexts={**owner.contexts, VOLUME: WHOLE})
        write_volume(context, tried)
        tables = [
            make_context_tables(count_values(seen_passes(tried, VOLUME, quantizer, data, images)))
            for quantizer in ("scalar", DEFAULT_LATTICE)
        ]
    write_volume(context, owner, *tables)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("images")
    args = parser.parse_args()
    try:
        export_volume(args.model, args.weights, args.images)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
