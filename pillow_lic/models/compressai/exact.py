"""What decides probabilities of the published codecs, in integers: the same numbers on every machine.

Weights and activations have 16 bits, and products are matrix products, as in
:mod:`pillow_lic.entropy.exact`.  A transposed convolution is a subpixel convolution: 3x3 with four times
the channels, whose outputs are the four phases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from pillow_lic.entropy.layers import IntegerLayer
from pillow_lic.models.compressai.layers import TAPS
from pillow_lic.models.transforms import QUALITIES

LIMIT = 2**15 - 1
"""Largest magnitude of what enters a product."""

OUTPUT_LIMIT = 2**20
"""Largest magnitude of what comes out of a layer, but for those with a leaky ReLU."""

EXACT = 2.0**53
Z_BITS = 8
"""Fraction bits of hyperlatents as the hyper-synthesis sees them."""

MEAN_BITS = 6
"""Fraction bits of means, and of latents as the context model sees them."""

SCALE_BITS = 10
"""Fraction bits of scales."""

SLOPE, SLOPE_BITS = 10486, 20
"""The leaky ReLU's slope: 0.0100002."""

_BAND = 4096
"""Positions whose windows are unrolled at once."""


@dataclass(frozen=True)
class Form:
    """A layer without its numbers: channels, ``size`` of the window, pixels from channels, and activation."""

    inputs: int
    outputs: int
    size: int = 1
    shuffle: bool = False
    activation: str = ""


def forms_of(network: nn.Module) -> list[tuple[Form, nn.Module]]:
    """The layers of a sequence of convolutions and activations, each with its float layer."""
    found: list[tuple[Form, nn.Module]] = []
    for layer in network.children():
        if isinstance(layer, nn.Conv2d):
            found.append((Form(layer.in_channels, layer.out_channels, layer.kernel_size[0]), layer))
        elif isinstance(layer, nn.ConvTranspose2d):
            found.append((Form(layer.in_channels, 4 * layer.out_channels, 3, shuffle=True), layer))
        elif isinstance(layer, nn.Sequential):  # a convolution and a pixel shuffle
            form, conv = forms_of(layer[:1])[0]
            found.append((replace(form, shuffle=True), conv))
        else:
            form, conv = found[-1]
            activation = "relu" if isinstance(layer, nn.ReLU) else "leaky"
            found[-1] = (replace(form, activation=activation), conv)
    return found


class Linear:
    """floor((weight x + bias) / 2**shift + 1/2), limited, by output channel, and the activation."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, form: Form, device: torch.device) -> None:
        weight, bias, shift = (tensors[f"{name}.{part}"] for part in ("weight", "bias", "shift"))
        if any(t.is_floating_point() for t in (weight, bias, shift)):
            raise ValueError(f"the model's layer {name} does not consist of integers")
        if (
            weight.shape != (form.outputs, form.inputs * form.size**2)
            or bias.shape != (len(weight),)
            or shift.shape != bias.shape
        ):
            raise ValueError(f"the model's layer {name} has the wrong shape")
        if int(shift.min()) < 0 or int(shift.max()) > 48:
            raise ValueError(f"the model's layer {name} is out of range")
        shifts, matrix = shift.to(torch.int64).numpy(), weight.double()
        starts = bias.to(torch.int64).numpy() + ((np.int64(1) << shifts) >> 1)
        bound = matrix.abs().sum(dim=1).numpy() * LIMIT + np.abs(starts.astype(np.float64))
        if float(bound.max()) >= EXACT:
            raise ValueError(f"the model's layer {name} is not exact in float64")
        self.form = form
        everywhere = np.broadcast_to(starts, (QUALITIES, len(starts)))
        self._layer = IntegerLayer(matrix.to(device), everywhere, shifts, LIMIT, torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        """Integers (in, P), limited, of any type -> (out, P)."""
        x = self._layer(x, 0)
        if self.form.activation == "relu":
            return x.clamp_(0, OUTPUT_LIMIT)
        if not self.form.activation:
            return x.clamp_(-OUTPUT_LIMIT, OUTPUT_LIMIT)
        x.clamp_(-LIMIT, LIMIT)
        # Products of 14 and 15 bits fit int32 and are exact in float64.
        if x.is_floating_point():
            return torch.maximum(x, (x * (SLOPE / 2**SLOPE_BITS)).add_(0.5).floor_(), out=x)
        less = (x * SLOPE).add_(1 << SLOPE_BITS - 1).bitwise_right_shift_(SLOPE_BITS)
        return torch.maximum(x, less, out=x)

    def over(self, x: Tensor) -> Tensor:
        """The layer as a convolution with zero padding: (in, h, w) -> (out, h, w), or twice the size."""
        channels, h, w = x.shape
        margin = self.form.size // 2
        padded = nn.functional.pad(self._layer.taken(x.clamp(-LIMIT, LIMIT)), (margin,) * 4)
        windows = padded.unfold(1, self.form.size, 1).unfold(2, self.form.size, 1).permute(0, 3, 4, 1, 2)
        rows = max(1, _BAND // w)
        bands = (windows[..., top : top + rows, :] for top in range(0, h, rows))
        out = torch.cat([self(band.reshape(channels * self.form.size**2, -1)) for band in bands], dim=1)
        out = out.reshape(-1, h, w)
        return nn.functional.pixel_shuffle(out[None], 2)[0] if self.form.shuffle else out


class ExactHyper:
    """Decoded hyperlatents, whole steps from their medians, to the parameters of y: (C, 4 h, 4 w) integers."""

    def __init__(self, tensors: Mapping[str, Tensor], forms: Sequence[Form], device: torch.device) -> None:
        self.layers = [Linear(tensors, f"h_s.{n}", form, device) for n, form in enumerate(forms)]

    def __call__(self, z: Tensor) -> Tensor:
        """``z`` (N, h, w) with ``Z_BITS`` fraction bits."""
        for layer in self.layers:
            z = layer.over(z)
        return z


class PublishedContext:
    """The context model and the network that joins it with the hyper-synthesis, over waves of positions."""

    def __init__(self, tensors: Mapping[str, Tensor], forms: Sequence[Form], device: torch.device) -> None:
        hyper = forms[0].inputs // 2
        taps = TAPS * TAPS // 2
        self.window = Linear(tensors, "context", Form(taps * hyper // 2, hyper), device)
        self.joint = [Linear(tensors, f"parameters.{n}", form, device) for n, form in enumerate(forms)]

    def __call__(self, windows: Tensor, hyper: Tensor) -> Tensor:
        """Parameters (P, 2 M) at some positions from their windows (P, 12 M) and the hyper-synthesis (P, 2 M)."""
        seen = self.window(windows.t()).t()
        x = torch.cat([hyper, seen.clamp_(-LIMIT, LIMIT).to(hyper.dtype)], dim=1).t()
        for layer in self.joint:
            x = layer(x)
        return x.t()


class Wavefront:
    """Latents as they become known, and the order that allows most of them at once.

    A position needs two columns to its right in the row above, so all with equal x + 3 y go together.
    """

    def __init__(self, latents: int, height: int, width: int, device: torch.device) -> None:
        margin = TAPS // 2
        self._row = width + 2 * margin
        self._values = torch.zeros(((height + 2 * margin) * self._row, latents), dtype=torch.int16, device=device)
        taps = torch.arange(TAPS * TAPS // 2, device=device)
        self._offsets = (taps // TAPS - margin) * self._row + taps % TAPS - margin
        row, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
        place = (row + margin) * self._row + column + margin
        wave = (column + 3 * row).flatten()
        order = torch.argsort(wave, stable=True)
        counts = torch.bincount(wave).tolist()
        places = place.flatten()[order]
        self._waves = list(zip(torch.split(order, counts), torch.split(places, counts), strict=True))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each wave in turn flat positions, places for :meth:`put`, and windows (P, 12 M)."""
        for at, place in self._waves:
            yield at, place, self._values[place[:, None] + self._offsets].flatten(1)

    @property
    def positions(self) -> list[Tensor]:
        """The flat positions of each wave."""
        return [at for at, _ in self._waves]

    def put(self, place: Tensor, values: Tensor) -> None:
        """Make latents (P, M) known, with ``MEAN_BITS`` fraction bits."""
        self._values[place] = values.clamp(-LIMIT, LIMIT).to(torch.int16)
