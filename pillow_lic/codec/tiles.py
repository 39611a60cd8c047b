"""A tile's symbols to bytes and back, in one piece or in the scans of a progressive file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pillow_lic.container import Coded, Scans
from pillow_lic.header import Header
from pillow_lic.models.context.schedule import VOLUME
from pillow_lic.models.loading import Model, OneQuality
from pillow_lic.pixels import Tile
from pillow_lic.scans import decode_scans, pack_scans
from pillow_lic.symbols import CodedTile, decode_stack, decode_symbols, pack

STACK = 4096
"""Latent positions of tiles that are read together."""


def to_bytes(model: OneQuality, tile: CodedTile, context: str, header: Header, scans: int) -> Coded:
    """A tile's bytes; ``scans`` is their number if the header says progressive."""
    if header.progressive and isinstance(model, Model):
        return Scans(scans, pack_scans(model, tile, context, scans))
    return pack(model, tile, context)


def from_bytes(
    model: OneQuality, header: Header, place: Tile, data: Coded, device: torch.device, channels: int | None = None
) -> CodedTile:
    """A tile's symbols, as far as its scans tell; ``OSError`` if they fail its checksum.

    ``channels``: of what is in one piece, only as much as it takes to know the first so many.
    """
    if isinstance(data, bytes):
        return decode_symbols(model, header, place, data, device, channels)
    if not isinstance(model, Model):
        raise OSError("damaged LIC file: a published codec's file has no scans")
    return decode_scans(model, header, place, data.parts, data.count, device)


def stacks(
    model: OneQuality, header: Header, tiles: Sequence[tuple[Tile, Coded | None]]
) -> Iterator[list[tuple[Tile, Coded | None]]]:
    """Tiles in turn, those of one size that follow each other together if they can be read together.

    Their networks then do the same work in fewer and larger pieces; only the volume's waves run through one tile.
    """
    stack: list[tuple[Tile, Coded | None]] = []
    can = isinstance(model, Model) and not header.adaptive and header.context != VOLUME
    for tile, data in tiles:
        if stack:
            last, before = stack[-1]
            alike = can and isinstance(data, bytes) and isinstance(before, bytes) and tile.size == last.size
            if not alike or (len(stack) + 1) * tile.size[0] * tile.size[1] > STACK:
                yield stack
                stack = []
        stack.append((tile, data))
    if stack:
        yield stack


def stack_from_bytes(
    model: OneQuality, header: Header, stack: Sequence[tuple[Tile, Coded]], device: torch.device, channels: int | None
) -> CodedTile:
    """The symbols of tiles that :func:`stacks` puts together."""
    if len(stack) == 1:
        return from_bytes(model, header, *stack[0], device, channels)
    assert isinstance(model, Model)
    places, data = zip(*stack, strict=True)
    return decode_stack(model, header, places, data, device, channels)
