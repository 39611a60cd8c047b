"""What decides probabilities of the published codecs, in integers: the same numbers on every machine.

Weights and activations are integers in float64, every sum stays below 2**53, and products are matrix
products: as in :mod:`pillow_lic.entropy.exact`, with wider numbers, since these networks were trained
without knowing of integers.  A transposed convolution is a subpixel convolution: 3x3 with four times
the channels, whose outputs are the four phases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pillow_lic.models.compressai.layers import TAPS

LIMIT = 2.0**20
"""Largest magnitude of an activation."""

EXACT = 2.0**53
Z_BITS = 8
"""Fraction bits of hyperlatents as the hyper-synthesis sees them."""

MEAN_BITS = 6
"""Fraction bits of means, and of latents as the context model sees them."""

SCALE_BITS = 12
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
    """floor((weight x + bias) / 2**shift + 1/2), limited, by output channel; x (P, in) -> (P, out)."""

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
        rounding = torch.bitwise_left_shift(torch.ones_like(shift, dtype=torch.int64), shift.long()) >> 1
        start, matrix = bias.double() + rounding, weight.double()
        bound = matrix.abs().sum(dim=1) * LIMIT + start.abs()
        if float(bound.max()) >= EXACT:
            raise ValueError(f"the model's layer {name} is not exact in float64")
        self.form = form
        # Scaled by powers of two beforehand, sums are whole multiples of 2**-shift and as exact.
        self.weight = torch.ldexp(matrix.t(), -shift.double()).contiguous().to(device)
        self.start = torch.ldexp(start, -shift.double()).to(device)

    def __call__(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """``start`` (P, out) holds sums that are known already, with the bias among them."""
        x = torch.addmm(self.start if start is None else start, x, self.weight).floor_()
        if self.form.activation == "relu":
            return x.clamp_(0, LIMIT)
        x.clamp_(-LIMIT, LIMIT)
        if self.form.activation == "leaky":
            # Products of 20 and 14 bits: exact.
            return torch.maximum(x, (x * (SLOPE / 2**SLOPE_BITS)).add_(0.5).floor_(), out=x)
        return x

    def over(self, x: Tensor) -> Tensor:
        """The layer as a convolution with zero padding: (in, h, w) -> (out, h, w), or twice the size."""
        channels, h, w = x.shape
        margin = self.form.size // 2
        windows = nn.functional.pad(x, (margin,) * 4).unfold(1, self.form.size, 1).unfold(2, self.form.size, 1)
        rows = max(1, _BAND // w)
        bands = []
        for top in range(0, h, rows):
            band = windows[:, top : top + rows].permute(1, 2, 0, 3, 4)
            bands.append(self(band.reshape(-1, channels * self.form.size**2)))
        out = torch.cat(bands).t().reshape(-1, h, w)
        return nn.functional.pixel_shuffle(out[None], 2)[0] if self.form.shuffle else out


class ExactHyper:
    """Decoded hyperlatents, whole steps from their medians, to the parameters of y: (C, 4 h, 4 w) integers."""

    def __init__(self, tensors: Mapping[str, Tensor], forms: Sequence[Form], device: torch.device) -> None:
        self.layers = [Linear(tensors, f"h_s.{n}", form, device) for n, form in enumerate(forms)]

    def __call__(self, z: Tensor) -> Tensor:
        """``z`` (N, h, w) with ``Z_BITS`` fraction bits."""
        x = z.double().clamp(-LIMIT, LIMIT)
        for layer in self.layers:
            x = layer.over(x)
        return x


class ExactContext:
    """The context model and the network that joins it with the hyper-synthesis, over waves of positions."""

    def __init__(self, tensors: Mapping[str, Tensor], forms: Sequence[Form], device: torch.device) -> None:
        hyper = forms[0].inputs // 2
        taps = TAPS * TAPS // 2
        self.window = Linear(tensors, "context", Form(taps * hyper // 2, hyper), device)
        first, *self.rest = (Linear(tensors, f"parameters.{n}", form, device) for n, form in enumerate(forms))
        self.hyper_weight, self.hyper_start = first.weight[:hyper], first.start
        self.first = first
        first.weight = first.weight[hyper:].contiguous()

    def prepare(self, hyper: Tensor) -> Tensor:
        """What the first joint layer gets from the hyper-synthesis (C, h, w): sums at all positions at once."""
        return torch.addmm(self.hyper_start, hyper.flatten(1).t(), self.hyper_weight)

    def __call__(self, windows: Tensor, prepared: Tensor) -> Tensor:
        """Parameters (P, 2 M) at some positions from their windows (P, 12 M) and prepared sums."""
        x = self.first(self.window(windows), prepared)
        for layer in self.rest:
            x = layer(x)
        return x


class Wavefront:
    """Latents as they become known, and the order that allows most of them at once.

    A position needs two columns to its right in the row above, so all with equal x + 3 y go together.
    """

    def __init__(self, latents: int, height: int, width: int, device: torch.device) -> None:
        margin = TAPS // 2
        self._row = width + 2 * margin
        self._values = torch.zeros(((height + 2 * margin) * self._row, latents), dtype=torch.float64, device=device)
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
        self._values[place] = values.clamp(-LIMIT, LIMIT)
