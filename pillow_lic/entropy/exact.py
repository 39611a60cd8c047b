"""The hyper-synthesis transform in integers: the same numbers on every machine.

Weights have 8 bits (up to 16 are taken) and activations 16, so that every product and partial sum stays below
2**53 and float64 is exact.  The library's convolutions are not used: Winograd and FFT variants are not exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.layers import IntegerLayer, interpolate

ACTIVATION_BITS = 8
"""Fraction bits of hidden activations."""

ACTIVATION_LIMIT = 2**15 - 1
MEAN_BITS = 6
"""Fraction bits of means: steps of 1/64."""

MEAN_LIMIT = 2**20
GAIN_BITS = 10
"""Fraction bits of z's inverse gains."""

LIMIT_OF_Z = 2**31 - 1
"""Of the numbers of z's prior: products with symbols fit 64 bits."""

EXACT = 2.0**53

BLOCK_LAYERS = ("reduce", "mix", "expand")
LAYERS = (
    "enter",
    *(f"middle.{n}" for n in BLOCK_LAYERS),
    "grow",
    *(f"fine_1.{n}" for n in BLOCK_LAYERS),
    *(f"fine_2.{n}" for n in BLOCK_LAYERS),
    "leave",
)


@dataclass(frozen=True)
class ExactLayer:
    """round((weight * x + bias) / 2**shift), by output channel.

    weight (out, in * k * k) float64 integers, bias (8, out) int64 by quality stop, shift (out,).
    """

    weight: Tensor
    bias: NDArray[np.int64]
    shift: NDArray[np.int64]
    size: int

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], name: str) -> ExactLayer:
        """Take a layer from a model's tensors and check that its sums are exact."""
        weight = tensors[f"{name}.weight"]
        if any(tensors[f"{name}.{part}"].is_floating_point() for part in ("weight", "bias", "shift")):
            raise ValueError(f"the model's layer {name} does not consist of integers")
        bias = tensors[f"{name}.bias"].to(torch.int64).numpy()
        shift = tensors[f"{name}.shift"].to(torch.int64).numpy()
        layer = cls(weight.flatten(1).to(torch.float64), bias, shift, weight.shape[-1])
        if shift.min() < 0 or shift.max() > 48 or layer.bound() >= EXACT:
            raise ValueError(f"the model's layer {name} is not exact in float64")
        return layer

    def bound(self) -> float:
        """Largest magnitude any partial sum can take, for the largest activations."""
        sums = self.weight.abs().sum(dim=1).numpy() * ACTIVATION_LIMIT
        return float((sums + np.abs(self.bias.astype(np.float64)).max(axis=0) + 2.0**self.shift).max())

    def to(self, device: torch.device) -> ExactLayer:
        """The same layer with its weights on a device."""
        return ExactLayer(self.weight.to(device), self.bias, self.shift, self.size)

    def prepare(self) -> None:
        """Make what the first use would, for threads that use it from streams of their own."""
        self._layer  # noqa: B018

    def __call__(self, x: Tensor, quality_code: int) -> Tensor:
        """(in, n, h, w) whole numbers of any type -> (out, n, h, w), n grids apart from each other."""
        return self._layer(self._columns(x), quality_code).reshape(-1, *x.shape[1:])

    def activated(self, x: Tensor, quality_code: int) -> Tensor:
        """The same, limited and through the leaky ReLU with slope 1/8."""
        return self._layer.activated(self._columns(x), quality_code).reshape(-1, *x.shape[1:])

    @cached_property
    def _layer(self) -> IntegerLayer:
        rounding = (np.int64(1) << self.shift) >> 1
        return IntegerLayer(self.weight, self.bias + rounding, self.shift, ACTIVATION_LIMIT, self.weight.dtype)

    def _columns(self, x: Tensor) -> Tensor:
        """im2col with zero padding: (c, n, h, w) -> (c * size * size, n * h * w); one copy, on all threads."""
        x, margin = self._layer.taken(x), self.size // 2
        if not margin:
            return x.flatten(1)
        windows = torch.nn.functional.pad(x, (margin,) * 4).unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.permute(0, 4, 5, 1, 2, 3).reshape(x.shape[0] * self.size**2, -1)


class ExactHyperSynthesis:
    """z symbols -> means and scale indices of y, all in integers."""

    def __init__(self, tensors: Mapping[str, Tensor], scales: int) -> None:
        self.layers = {name: ExactLayer.load(tensors, name) for name in LAYERS}
        self.z_inverse_gain, self.z_mean, self.z_index = (
            tensors[name].to(torch.int64).numpy() for name in ("z_inverse_gain", "z_mean", "z_index")
        )
        for table in (self.z_inverse_gain, self.z_mean, self.z_index):
            if table.size and not -LIMIT_OF_Z <= int(table.min()) <= int(table.max()) <= LIMIT_OF_Z:
                raise ValueError("the model's prior of z is out of range")
        self.scales = scales

    def prepare(self) -> None:
        """Make what the first use would, for threads that use it from streams of their own."""
        for layer in self.layers.values():
            layer.prepare()

    def to(self, device: torch.device) -> ExactHyperSynthesis:
        """The same network with its weights on a device."""
        moved = object.__new__(ExactHyperSynthesis)
        moved.__dict__.update(self.__dict__)
        moved.layers = {name: layer.to(device) for name, layer in self.layers.items()}
        return moved

    def z_prior(self, quality_code: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """z's inverse gains (1/1024), means (1/64 steps) and scale indices, (N,) each."""
        gain = np.maximum(interpolate(self.z_inverse_gain, quality_code), 1)
        index = (interpolate(self.z_index, quality_code) + 32) >> MEAN_BITS
        index = np.clip(index, 0, self.scales - 1)
        return gain, interpolate(self.z_mean, quality_code), index.astype(np.uint8)

    def __call__(self, symbols: NDArray[np.int16], quality_code: int) -> tuple[Tensor, Tensor, Tensor]:
        """z symbols (N, n, h, w) of n tiles -> (mean int32 in steps of 1/64, index uint8), (M, n, 4 h, 4 w) each.

        The third result is the last hidden layer, (hyper_channels, n, 4 h, 4 w) float32, for context models.
        Runs where the weights lie; inputs come from the host.
        """
        device = self.layers["enter"].weight.device
        x = torch.from_numpy(self.dequantise(symbols, quality_code)).to(device)
        x = _shuffle(self.layers["enter"].activated(x, quality_code))
        x = self._block("middle", x, quality_code)
        x = _shuffle(self.layers["grow"].activated(x, quality_code))
        x = self._block("fine_1", x, quality_code)
        x = self._block("fine_2", x, quality_code)
        mean, index = self.layers["leave"](x, quality_code).chunk(2)
        mean = mean.clamp(-MEAN_LIMIT, MEAN_LIMIT).to(torch.int32)
        return mean, index.clamp(0, self.scales - 1).to(torch.uint8), x.to(torch.float32)

    def dequantise(self, symbols: NDArray[np.int16], quality_code: int) -> NDArray[np.int64]:
        """(symbol + mean) * inverse gain, as an activation: what h_s sees."""
        gain, mean = (x.reshape(-1, 1, 1, 1) for x in self.z_prior(quality_code)[:2])
        steps = (symbols.astype(np.int64) << MEAN_BITS) + mean
        fraction = MEAN_BITS + GAIN_BITS - ACTIVATION_BITS
        z = (steps * gain + (1 << fraction >> 1)) >> fraction
        limit = ACTIVATION_LIMIT
        out: NDArray[np.int64] = np.clip(z, -limit, limit)
        return out

    def _block(self, name: str, x: Tensor, quality_code: int) -> Tensor:
        h = self.layers[f"{name}.reduce"].activated(x, quality_code)
        h = self.layers[f"{name}.mix"].activated(h, quality_code)
        h = self.layers[f"{name}.expand"](h, quality_code)
        return h.add_(x.to(h.dtype)).clamp_(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def _shuffle(x: Tensor) -> Tensor:
    """Pixel shuffle by 2: (4 c, n, h, w) -> (c, n, 2 h, 2 w)."""
    return torch.nn.functional.pixel_shuffle(x.transpose(0, 1), 2).transpose(0, 1)
