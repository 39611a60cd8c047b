"""Float networks to integers: weights by output channel, activations by what pictures make of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pillow_lic.entropy.exact import MEAN_BITS
from pillow_lic.models.compressai.exact import (
    EXACT,
    LIMIT,
    SCALE_BITS,
    Z_BITS,
    Form,
    forms_of,
)
from pillow_lic.models.compressai.layers import LEAKY_SLOPE, TAPS, as_convolution
from pillow_lic.models.compressai.networks import Network

WEIGHT_LIMIT = 2**15 - 129
"""Largest magnitude of a weight: two bytes, both signed."""

SUM_LIMIT = 2**24 - 2**20
"""Of the magnitudes of an output's weights, and 256 for each: sums of their bytes fit 32 bits then."""
SMALLEST = 2.0**-8
"""Of an output's largest weight: what is smaller need not be as precise, and would make its bias too large."""

ROOM = 16
"""How many times larger than in any calibration picture an activation may become before it is limited."""

MOST_BITS = 10
"""Most fraction bits of an activation."""


class Calibration:
    """The largest magnitude of each hidden activation over some pictures."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.largest: dict[str, float] = {}

    def see(self, z: Tensor, y: Tensor) -> None:
        """Run decoded hyperlatents and latents (1, C, h, w) through the float networks."""
        x = z
        for n, (form, layer) in enumerate(forms_of(self.network.h_s)):
            x = self._run(f"h_s.{n}", form, layer, x)
        if self.network.kind.context:
            seen = self._run("context", Form(y.shape[1], 2 * y.shape[1], TAPS), self.network.context_prediction, y)
            x = torch.cat([x, seen], dim=1)
            for n, (form, layer) in enumerate(forms_of(self.network.entropy_parameters)):
                x = self._run(f"parameters.{n}", form, layer, x)

    def _run(self, name: str, form: Form, layer: nn.Module, x: Tensor) -> Tensor:
        x = layer(x)
        self.largest[name] = max(self.largest.get(name, 0.0), float(x.abs().max()))
        if form.shuffle and isinstance(layer, nn.Conv2d):
            x = F.pixel_shuffle(x, 2)
        if form.activation == "relu":
            return F.relu(x)
        return F.leaky_relu(x, LEAKY_SLOPE) if form.activation else x

    def bits(self, name: str) -> int:
        """Fraction bits that leave room above what was seen."""
        largest = max(self.largest.get(name, 1.0), 2.0**-20)
        return min(MOST_BITS, math.floor(math.log2(LIMIT / (ROOM * largest))))


def integers_of(network: Network, calibration: Calibration) -> dict[str, Tensor]:
    """The tensors of the integer networks; ``ValueError`` naming a layer that cannot be exact."""
    hyper = [(f"h_s.{n}", *layer) for n, layer in enumerate(forms_of(network.h_s))]
    final = _final_bits(network)
    if not network.kind.context:
        return _chain(hyper, Z_BITS, calibration, final)
    # What the hyper-synthesis and what the context model say enter one layer, in one unit.
    shared = min(calibration.bits(hyper[-1][0]), calibration.bits("context"))
    window = network.context_prediction
    weight, bias = as_convolution(window)
    weight = weight.flatten(2)[:, :, : TAPS * TAPS // 2].transpose(1, 2)  # by tap, then by channel
    joint = [(f"parameters.{n}", *layer) for n, layer in enumerate(forms_of(network.entropy_parameters))]
    return {
        **_chain(hyper, Z_BITS, calibration, torch.tensor(float(shared))),
        **_integers("context", weight.flatten(1), bias, MEAN_BITS, torch.tensor(float(shared))),
        **_chain(joint, shared, calibration, final),
    }


def _final_bits(network: Network) -> Tensor:
    """Fraction bits of each parameter of the latents: scales, then means."""
    latents = network.latents
    return torch.tensor([SCALE_BITS] * latents + [MEAN_BITS] * latents * network.kind.means, dtype=torch.float64)


def _chain(
    layers: list[tuple[str, Form, nn.Module]], inputs: int, calibration: Calibration, final: Tensor
) -> dict[str, Tensor]:
    """Layers one after the other, from ``inputs`` fraction bits to the ``final`` ones."""
    found: dict[str, Tensor] = {}
    for n, (name, _, layer) in enumerate(layers):
        last = n == len(layers) - 1
        outputs = final if last else torch.tensor(float(calibration.bits(name)))
        found |= _integers(name, *_matrix(layer), inputs, outputs)
        inputs = calibration.bits(name)
    return found


def _matrix(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in k k) and bias (out,) of a layer as a convolution."""
    weight, bias = as_convolution(layer)
    return weight.flatten(1), bias


def _integers(name: str, weight: Tensor, bias: Tensor, inputs: int, outputs: Tensor) -> dict[str, Tensor]:
    """A layer whose inputs and outputs have so many fraction bits."""
    weight, bias = weight.double(), bias.double()
    magnitudes = weight.abs()
    most = torch.minimum(
        WEIGHT_LIMIT / magnitudes.amax(dim=1).clamp(min=SMALLEST),
        (SUM_LIMIT - 256 * weight.shape[1]) / magnitudes.sum(dim=1).clamp(min=SMALLEST),
    )
    power = torch.floor(torch.log2(most))
    shift = inputs + power - outputs
    whole = torch.round(torch.ldexp(weight, power[:, None]))
    offset = torch.round(torch.ldexp(bias, inputs + power))
    bound = whole.abs().sum(dim=1) * LIMIT + offset.abs() + torch.exp2(shift)
    if bool((shift < 0).any()) or float(bound.max()) >= EXACT:
        raise ValueError(f"the weights of {name} are too large for its exact form")
    return {
        f"{name}.weight": whole.to(torch.int16),
        f"{name}.bias": offset.to(torch.int64),
        f"{name}.shift": shift.to(torch.uint8),
    }
