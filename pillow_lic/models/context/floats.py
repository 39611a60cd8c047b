"""Context models that ship in integers, as the float networks that those integers stand for: gradients need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pillow_lic.entropy.ladder import FRACTION, SHIFT_BITS
from pillow_lic.entropy.units import LAYERS
from pillow_lic.models.context.network import WINDOWS, ContextModel
from pillow_lic.models.context.schedule import ContextShape, Division
from pillow_lic.models.hyperprior import INDEX_GAIN
from pillow_lic.models.transforms import Architecture


def float_weights(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights of a :class:`ContextModel` by name, from the tensors of a model file; exported again they are the
    same integers.
    """
    numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("units.")})
    for unit in map(str, numbers):
        part = {k.removeprefix(f"units.{unit}."): v for k, v in tensors.items() if k.startswith(f"units.{unit}.")}
        for name in WINDOWS:
            yield f"networks.{unit}.{name}", part[name].float() * 2.0 ** -int(part["window_bits"])
        for name in LAYERS:
            weight, bias, shift = (part[f"{name}.{kind}"].double() for kind in ("weight", "bias", "shift"))
            power = 2.0 ** (shift - FRACTION + (SHIFT_BITS if name == "leave" else FRACTION))
            if name == "leave":
                power[len(power) // 2 :] *= INDEX_GAIN
            yield f"networks.{unit}.{name}.weight", (weight / power[:, None]).float()[:, :, None, None]
            yield f"networks.{unit}.{name}.bias", (bias / power * 2.0**-FRACTION).float()


def float_network(name: str, tensors: Mapping[str, Tensor], division: Division, arch: Architecture) -> ContextModel:
    """A context model to differentiate, whose weights stay as they are; ``ValueError`` if the tensors have none."""
    weights = dict(float_weights(tensors))
    width = next((len(weight) for key, weight in weights.items() if key.endswith("reduce.weight")), None)
    if width is None:
        raise ValueError(f"the context {name!r} has no networks")
    with torch.random.fork_rng(devices=[]):  # what it starts with is thrown away, and nobody's random numbers with it
        made = ContextModel(name, ContextShape(division.slices, division.groups, width), arch)
    made.float().load_state_dict(weights)
    return made.eval().requires_grad_(False)
