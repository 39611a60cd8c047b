"""From a model file that ships back to float weights that training goes on from: the inverse of the export.

Transforms come back as they are, in half precision; layers of integers as what they stand for, so that exporting them
again gives the same integers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from pillow_lic.models.context.schedule import HYPER, VOLUME
from pillow_lic.models.errors import reading
from pillow_lic.models.finding import manifest_of
from pillow_lic.models.floats import float_weights, hyper_weights
from pillow_lic.models.loading import Model, load_model
from pillow_lic.training.export import FLOAT_PARTS


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
