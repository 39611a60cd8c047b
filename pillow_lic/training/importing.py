"""What training goes on from: a run's weights, or those of a model file, by the inverse of the export.

Of model files, transforms come back as they are, in half precision; layers of integers as what they stand for, so that
exporting them again gives the same integers.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pillow_lic.models.context.schedule import HYPER, VOLUME
from pillow_lic.models.errors import reading
from pillow_lic.models.finding import manifest_of
from pillow_lic.models.floats import float_weights, hyper_weights
from pillow_lic.models.loading import Model, load_model
from pillow_lic.training.export import FLOAT_PARTS


def is_model(path: Path) -> bool:
    """Whether a path or name is a model's, not that of what a run has saved."""
    by_name = path.parent == Path() and path.suffix != ".pt" and not path.is_file()
    return path.suffix == ".safetensors" or by_name


def load_state(path: str | Path, device: torch.device | str, *keys: str) -> dict[str, Any]:
    """A run's checkpoint.pt or weights.pt; ``ValueError`` if it is damaged, or lacks something."""
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
        if not Path(path).exists():
            raise
        raise ValueError(f"{path} is no run's checkpoint.pt or weights.pt, or is damaged") from error
    if not isinstance(found, dict) or not set(keys) <= found.keys():
        raise ValueError(f"{path} is no run's checkpoint.pt or weights.pt")
    return found


def weights_of(name: str | Path) -> dict[str, Any]:
    """A model, by name or file, as a run's ``weights.pt``: float weights by parameter, and what its manifest tells of
    its stages.

    Context models come with it, but for the one over the volume.  Raises ``ValueError`` for what is no native model.
    """
    model = load_model(str(name))
    if not isinstance(model, Model):
        raise ValueError(f"the model {str(name)!r} is a published codec's, which is not trained on")
    with reading(model.path), safe_open(model.path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        average = {k: v.float() for k, v in tensors.items() if k.startswith((*FLOAT_PARTS, "log_"))}
        average |= hyper_weights(model.exact)
        contexts = {name: division.as_dict() for name, division in model.contexts.items() if name != VOLUME}
        if model.hyper is not None:
            contexts[HYPER] = model.hyper.as_dict()
        for name in contexts:
            prefix = f"context.{name}."
            parts = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            average |= {f"contexts.{name}.{k}": v for k, v in float_weights(parts)}
    told = manifest_of(model.path)
    training = told.get("training") if told.get("identity") == model.identity.hex() else None
    history = training.get("stages", []) if isinstance(training, dict) else []
    return {"average": average, "contexts": contexts, "history": history, "distortion": model.distortion}
