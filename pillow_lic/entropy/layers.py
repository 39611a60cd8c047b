"""Layers of whole numbers, floor((weight x + bias) / 2**shift), the same on every machine.

Sums are made in one of two ways, which agree to the last bit:

- in floating point, whose products and sums of integers are exact as long as the sums fit the mantissa,
  in any order, on any number of threads, on CPU and GPU;
- in bytes, on CPUs that multiply these natively (VNNI): a product of bytes takes a tenth of the time of
  float32, and its 32-bit sums are exact by construction.  A number is split as 256 high + low.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.header import QUALITY_ONE

FLIP = 128
"""A number's lower byte is unsigned; flipping its highest bit makes it a signed one, less 128."""


def interpolate(table: NDArray[np.int64], quality_code: int) -> NDArray[np.int64]:
    """Row of an (8, n) integer table at a quality code in 0...1792, rounded to nearest."""
    one = QUALITY_ONE
    low = min(quality_code // one, table.shape[0] - 2)
    f = quality_code - one * low
    out: NDArray[np.int64] = (table[low] * (one - f) + table[low + 1] * f + one // 2) // one
    return out


FEW = 64
"""Columns up to which products of numbers of eight bits are made in float32, also where bytes work."""


@cache
def bytes_work() -> bool:
    """Whether this CPU multiplies bytes natively and this torch gets even the largest sums right.

    Without VNNI, and where the environment tells the library not to use it, pairs of products may
    saturate at 16 bits.
    """
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not (known.get("avx512_vnni") or known.get("avx_vnni")) or not hasattr(torch, "_int_mm"):
        return False
    extremes = torch.tensor([-128, 127, 127, -128, 1], dtype=torch.int8, device="cpu")
    one = extremes[torch.arange(32 * 512, device="cpu").square() % 31 % 5].reshape(32, 512)
    one[:2], one[2:4] = 127, -128
    other = one.roll(1, dims=0).mT.contiguous()
    try:
        found = torch._int_mm(one, other)
    except RuntimeError:
        return False
    return bool((found.double() == one.double() @ other.double()).all())


class IntegerLayer:
    """floor((weight x + bias) / 2**shift), and the activation behind it.

    weight (out, in) integers, bias (8, out) int64 by quality stop and shift (out,).  ``x`` holds whole
    numbers up to ``limit``, at most 32767, in any type; sums must stay below 2**24 for float32 and 2**53
    for float64, which whoever makes a layer has to check.
    """

    def __init__(
        self, weight: Tensor, bias: NDArray[np.int64], shift: NDArray[np.int64], limit: int, dtype: torch.dtype
    ) -> None:
        self._bias, self._limit = bias, limit
        made = _Bytes.of(weight, bias, shift, limit) if weight.device.type == "cpu" and bytes_work() else None
        self._many: _Bytes | _Floats = made or _Floats(weight, shift, dtype)
        # Of a few columns float32 makes the sums in one step instead of ten.
        self._few = _Floats(weight, shift, dtype) if made and dtype == torch.float32 else self._many

    def taken(self, x: Tensor) -> Tensor:
        """x in the type that products of many columns are made in."""
        return x.to(self._many.dtype)

    def __call__(self, x: Tensor, quality_code: int, *, by_row: bool = False) -> Tensor:
        """(in, P) -> (out, P), in memory as ``x`` is, row by row or column by column, or always ``by_row``."""
        sums = self._sums(x, quality_code, by_row)
        return sums.floor_() if sums.is_floating_point() else sums

    def activated(self, x: Tensor, quality_code: int) -> Tensor:
        """The same, limited and through the leaky ReLU with slope 1/8, rounded down."""
        return self.activate(self._sums(x, quality_code))

    def activate(self, sums: Tensor) -> Tensor:
        """The activation, in place; rounding down once at the end does what doing so after each step does."""
        sums = sums.clamp_(-self._limit, self._limit)
        if sums.is_floating_point():
            return torch.nn.functional.leaky_relu_(sums, 0.125).floor_()
        return torch.maximum(sums, sums >> 3, out=sums)

    def _sums(self, x: Tensor, quality_code: int, by_row: bool = False) -> Tensor:
        product = self._few if x.shape[1] <= FEW else self._many
        code, start = product.started
        if code != quality_code:  # one assignment, so that threads see either pair
            start = product.start(interpolate(self._bias, quality_code))
            product.started = (quality_code, start)
        if start[0].is_cuda:  # another thread may replace it while this one's stream still reads it
            start[0].record_stream(torch.cuda.current_stream(start[0].device))
        return product(x.to(product.dtype), by_row, *start)


class _Floats:
    """Products in floating point of weights that are divided by 2**shift, which is exact, and so are their sums."""

    def __init__(self, weight: Tensor, shift: NDArray[np.int64], dtype: torch.dtype) -> None:
        self.dtype, self._shift = dtype, shift
        self._scaled = weight.to(dtype) * self._on_device(np.ldexp(1.0, -shift), weight.device)
        # (in, out): of columns that lie one after the other in memory, as context models have them, products of a few
        # take half the time with it.
        self._turned = self._scaled.t().contiguous() if dtype == torch.float32 else self._scaled.t()
        self.started: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def _on_device(self, column: NDArray[np.float64], device: torch.device) -> Tensor:
        return torch.from_numpy(column).to(device, self.dtype)[:, None]

    def start(self, bias: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """What sums start at."""
        return (self._on_device(np.ldexp(bias.astype(np.float64), -self._shift), self._scaled.device),)

    def __call__(self, x: Tensor, by_row: bool, *start: Tensor) -> Tensor:
        """(in, P) -> (out, P), not rounded down yet."""
        if x.is_contiguous():
            return torch.addmm(start[0], self._scaled, x)
        sums = torch.addmm(start[0].t(), x.t(), self._turned).t()
        return sums.contiguous() if by_row else sums


class _Bytes:
    """Products by bytes of a layer's weights: one byte each, or two."""

    def __init__(self, low: Tensor, high: Tensor | None, offset: NDArray[np.int64], shift: NDArray[np.int64]) -> None:
        self.dtype = torch.int16
        self.started: tuple[int, tuple[Tensor, ...]] = (-1, ())
        self._rows = len(low)
        self._wide = high is not None
        self._weight = low if high is None else torch.cat([low, high])
        self._offset = offset
        self._shift = torch.from_numpy(shift - (8 if self._wide else 0)).to(torch.int32)[:, None]

    @classmethod
    def of(cls, weight: Tensor, bias: NDArray[np.int64], shift: NDArray[np.int64], limit: int) -> _Bytes | None:
        """None if some sum might not fit 32 bits."""
        whole = weight.to(torch.int64)
        low = (whole + FLIP) % 256 - FLIP
        high = (whole - low) >> 8
        wide = bool(high.any())
        largest, inputs = whole.abs().sum(dim=1).numpy(), whole.shape[1]
        offset = FLIP * whole.sum(dim=1).numpy()
        starts = np.abs(bias).max(axis=0) + np.abs(offset)
        if wide:
            with_a_byte = FLIP * (largest + 256 * inputs)
            top = with_a_byte + ((with_a_byte + starts) >> 8) + 256
        else:
            top = largest * (FLIP + 256 * ((limit >> 8) + 1)) + starts
        if int(top.max()) >= 2**31 or int(high.abs().max()) >= FLIP or (wide and int(shift.min()) < 8):
            return None
        return cls(low.to(torch.int8), high.to(torch.int8) if wide else None, offset, shift)

    def start(self, bias: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """What sums start at, in a part below 256 and 256ths of the rest if weights have two bytes."""
        whole = bias + self._offset
        parts = (whole & 255, whole >> 8) if self._wide else (whole,)
        return tuple(torch.from_numpy(part).to(torch.int32)[:, None] for part in parts)

    def __call__(self, x: Tensor, by_row: bool, *start: Tensor) -> Tensor:
        """(in, P) int16 -> (out, P) int32."""
        count = x.shape[1]
        if x.is_contiguous():
            both = torch.empty((x.shape[0], 2 * count), dtype=torch.int8, device=x.device)
        else:
            both = torch.empty((2 * count, x.shape[0]), dtype=torch.int8, device=x.device).t()
        both[:, :count].copy_(x).bitwise_xor_(-FLIP)
        both[:, count:] = x >> 8
        if by_row or x.is_contiguous():
            sums = torch._int_mm(self._weight, both)
        else:
            sums = torch._int_mm(both.t(), self._weight.t()).t()
        if not self._wide:
            sums = torch.add(sums[:, :count], sums[:, count:], alpha=256)
            return sums.add_(start[0]).bitwise_right_shift_(self._shift)
        sums = torch.add(sums[: self._rows], sums[self._rows :], alpha=256)
        # floor((256 high + low) / 2**shift) in 32 bits: what is below 256 is rounded down first.
        low = sums[:, :count].add_(start[0]) >> 8
        return low.add_(sums[:, count:]).add_(start[1]).bitwise_right_shift_(self._shift)
