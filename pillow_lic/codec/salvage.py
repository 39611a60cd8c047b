"""What can be shown of a damaged frame: the tiles that are certainly right."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile

import torch
from torch import Tensor

from pillow_lic.codec.tiles import from_bytes
from pillow_lic.container import Coded, Scans
from pillow_lic.header import Header
from pillow_lic.models.loading import OneQuality
from pillow_lic.models.transforms import LATENT_STRIDE
from pillow_lic.pixels import Tile, tiles_of
from pillow_lic.symbols import CodedTile, pack
from pillow_lic.warning import warn


def salvaged(model: OneQuality, header: Header, tiles: Sequence[Coded], device: torch.device) -> list[Coded | None]:
    """The tiles of a damaged frame that are certainly right, None for the others, and a warning of how many.

    A checksum proves a tile's symbols, but not its place: the index that says where tiles begin may be
    damaged too.  Symbols that give all of the tile's bytes when they are coded again prove where the tile
    ends.  So right are those that follow each other from the frame's first byte on, or up to its last.
    Raises ``OSError`` if there are none.
    """
    places = tiles_of(header.width, header.height, header.tile)
    whole = [_is_whole(model, header, place, data, device) for place, data in zip(places, tiles, strict=True)]
    front = len(list(takewhile(bool, whole)))
    back = len(whole) - len(list(takewhile(bool, reversed(whole))))
    found: list[Coded | None] = [data if n < front or n >= back else None for n, data in enumerate(tiles)]
    missing = found.count(None)
    if missing == len(found):
        raise OSError("damaged LIC file: no tile of the picture is intact")
    if missing:
        warn(f"damaged LIC file: {missing} of {len(found)} tiles are lost and left grey")
    return found


def _is_whole(model: OneQuality, header: Header, place: Tile, data: Coded, device: torch.device) -> bool:
    tile = _decoded(model, header, place, data, device)
    return tile is not None and pack(model, tile, header.context) == data


def _decoded(model: OneQuality, header: Header, place: Tile, data: Coded, device: torch.device) -> CodedTile | None:
    with suppress(OSError):
        return from_bytes(model, header, place, data, device)
    return None


def intact_scans(model: OneQuality, header: Header, tiles: Sequence[Coded], device: torch.device) -> list[Coded | None]:
    """Of each tile of a progressive frame the scans up to the first that fails its checksum.

    A tile whose first scan fails stays as it is: decoding it raises ``OSError``.  So no scan is shown in another
    tile's place, whatever the index says: all first scans have to be there, one after the other, and a later scan's
    checksum covers the earlier ones' symbols.  A warning tells what is missing.
    """
    found: list[Scans] = []
    for place, tile in zip(tiles_of(header.width, header.height, header.tile), tiles, strict=True):
        assert isinstance(tile, Scans)
        kept = tile
        while len(kept.parts) > 1 and _decoded(model, header, place, kept, device) is None:
            kept = Scans(tile.count, kept.parts[:-1])
        found.append(kept)
    if any(len(tile.parts) < tile.count for tile in found):
        few = min(len(tile.parts) for tile in found)
        warn(f"damaged LIC file: less sharp, from {few} of {found[0].count} scans")
    return list(found)


def grey(tile: Tile, scale: int = 1) -> Tensor:
    """Pixels of a lost tile at 1/scale, (3, H, W) in -127.5...127.5."""
    stride = LATENT_STRIDE // scale
    shape = (3, stride * (tile.bottom - tile.top), stride * (tile.right - tile.left))
    return torch.zeros(shape, dtype=torch.float32, device="cpu")
