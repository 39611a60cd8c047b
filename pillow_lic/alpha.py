"""Transparency: kept as it is by default, coded by the PNG coder that Pillow carries."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from pillow_lic.pixels import Pixels

_EVEN, _PNG = 0, 1
OPAQUE = bytes((_EVEN, 255))


def reduced(alpha: Pixels, quality: int) -> Pixels:
    """Alpha values in as many levels as a quality below 100 leaves; 0 and 255 are always kept."""
    if quality >= 100:
        return alpha
    steps = 1 + quality * quality // 80
    return np.rint(np.rint(alpha / 255 * steps) * (255 / steps)).astype(np.uint8)


def pack(alpha: Pixels) -> bytes:
    """Code (H, W) alpha values without loss."""
    if (alpha == alpha.flat[0]).all():
        return bytes((_EVEN, int(alpha.flat[0])))
    image = Image.fromarray(alpha)
    if np.isin(alpha, (0, 255)).all():
        image = image.convert("1", dither=Image.Dither.NONE)
    out = BytesIO()
    image.save(out, "PNG", optimize=True)
    return bytes((_PNG,)) + out.getvalue()


def unpack(data: bytes, width: int, height: int) -> Pixels:
    """The alpha values (height, width) that :func:`pack` coded; ``OSError`` for anything else."""
    if len(data) == 2 and data[0] == _EVEN:
        return np.full((height, width), data[1], np.uint8)
    if data[:1] != bytes((_PNG,)):
        raise OSError("damaged LIC file: transparency coded in an unknown way")
    try:
        # Not Image.open, which would warn of large pictures once more: this one's size is known, and compared.
        with PngImageFile(BytesIO(data[1:])) as image:
            if image.size != (width, height) or image.mode not in ("1", "L"):
                raise OSError(f"another size or mode: {image.width}x{image.height}, {image.mode}")
            return np.asarray(image.convert("L"))
    except (  # whatever Pillow's reader of PNG meets in hostile chunks
        OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError,
        struct.error, zlib.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise OSError(f"damaged LIC file: transparency does not decode ({error})") from error


def hide_transparent(colour: Pixels, alpha: Pixels) -> Pixels:
    """Colours (H, W) or (H, W, 3) with what nobody sees made smooth, so that it costs few bits.

    Transparent pixels take averages of visible ones near them, from a pyramid of halved pictures.
    """
    visible = alpha > 0
    if visible.all():
        return colour
    if not visible.any():
        return np.full_like(colour, 128)
    shown: Pixels = np.where(visible[:, :, None], colour.reshape(*alpha.shape, -1), np.uint8(0))
    smooth = np.rint(_fill(_halve(shown), _halve(visible[:, :, None]))).astype(np.uint8)
    for of_four in _FOUR:
        part, seen = shown[of_four], visible[of_four]
        np.copyto(part, smooth[: part.shape[0], : part.shape[1]], where=~seen[:, :, None])
    return shown.reshape(colour.shape)


def _fill(total: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """total / weight (H, W, C), from a picture of half the size where the weight (H, W, 1) is 0."""
    known = weight > 0
    own = np.divide(total, weight, out=np.zeros_like(total), where=known)
    if known.all() or weight.shape[:2] == (1, 1):
        return own
    coarse = _fill(_halve(total), _halve(weight))
    height, width = weight.shape[:2]
    np.copyto(own, _doubled(_doubled(coarse, 0), 1)[:height, :width], where=~known)
    return own


def _doubled(x: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Twice as many pixels on an axis, interpolated between the centres of the given ones."""
    x = np.moveaxis(x, axis, 0)
    both = np.empty((2 * len(x), *x.shape[1:]), np.float32)
    for side in (0, 1):
        np.multiply(x, 0.75, out=both[side::2])
    far = 0.25 * x
    both[2::2] += far[:-1]
    both[1:-1:2] += far[1:]
    both[0] += far[0]
    both[-1] += far[-1]
    return np.moveaxis(both, 0, axis)


_FOUR = [(slice(row, None, 2), slice(column, None, 2)) for row in (0, 1) for column in (0, 1)]
"""Every second pixel of every second row: together all of a picture."""


def _halve(x: NDArray[Any]) -> NDArray[np.float32]:
    """Sums of 2x2 pixels of (H, W, C); an odd last row or column counts for itself."""
    height, width, channels = x.shape
    halved = np.zeros((-(-height // 2), -(-width // 2), channels), np.float32)
    for of_four in _FOUR:
        part = x[of_four]
        halved[: part.shape[0], : part.shape[1]] += part
    return halved
