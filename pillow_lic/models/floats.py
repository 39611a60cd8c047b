"""Networks that ship in integers, as the float networks that those integers stand for: gradients need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pillow_lic.entropy.exact import ACTIVATION_BITS, GAIN_BITS, LAYERS, MEAN_BITS, ExactHyperSynthesis
from pillow_lic.entropy.ladder import FRACTION, SHIFT_BITS
from pillow_lic.entropy.units import LAYERS as UNIT_LAYERS
from pillow_lic.models.context.network import WINDOWS, ContextModel
from pillow_lic.models.context.schedule import ContextShape, Division
from pillow_lic.models.hyperprior import INDEX_GAIN, HyperSynthesis
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
        for name in UNIT_LAYERS:
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


def hyper_weights(exact: ExactHyperSynthesis) -> dict[str, Tensor]:
    """h_s's weights and the tables of z's prior by the names of :class:`HyperpriorModel`; exported again they are the
    same integers.
    """
    found = {}
    for name in LAYERS:
        layer = exact.layers[name]
        bias, shift = torch.from_numpy(layer.bias).double(), torch.from_numpy(layer.shift).double()
        fraction, gain = torch.full_like(shift, ACTIVATION_BITS), torch.ones_like(shift)
        if name == "leave":
            half = len(shift) // 2
            fraction[:half], fraction[half:] = MEAN_BITS, 0
            gain[half:] = INDEX_GAIN
        power = 2.0 ** (shift - ACTIVATION_BITS + fraction) * gain
        weight = (layer.weight.cpu() / power[:, None]).float()
        found[f"hyper_synthesis.{name}.weight"] = weight.view(len(shift), -1, layer.size, layer.size)
        found[f"hyper_synthesis.{name}.bias"] = (bias / power * 2.0**-ACTIVATION_BITS).float()
    found["z_inverse_gain"] = (torch.from_numpy(exact.z_inverse_gain) * 2.0**-GAIN_BITS).float()
    found["z_mean"] = (torch.from_numpy(exact.z_mean) * 2.0**-MEAN_BITS).float()
    found["z_index"] = (torch.from_numpy(exact.z_index) * (2.0**-MEAN_BITS / INDEX_GAIN)).float()
    return found


def float_hyper_synthesis(exact: ExactHyperSynthesis, arch: Architecture) -> HyperSynthesis:
    """h_s to differentiate, whose weights stay as they are."""
    with torch.device("meta"):
        made = HyperSynthesis(arch)
    prefix = "hyper_synthesis."
    state = {k.removeprefix(prefix): v for k, v in hyper_weights(exact).items() if k.startswith(prefix)}
    made.load_state_dict(state, assign=True)
    return made.eval().requires_grad_(False)
