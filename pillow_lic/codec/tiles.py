"""A tile's symbols to bytes and back, in one piece or in the scans of a progressive file."""

from __future__ import annotations

import torch

from pillow_lic.container import Coded, Header, Scans
from pillow_lic.models.loading import Model, OneQuality
from pillow_lic.pixels import Tile
from pillow_lic.scans import decode_scans, pack_scans
from pillow_lic.symbols import CodedTile, decode_symbols, pack


def to_bytes(model: OneQuality, tile: CodedTile, context: str, header: Header, scans: int) -> Coded:
    """A tile's bytes; ``scans`` is their number if the header says progressive."""
    if header.progressive and isinstance(model, Model):
        return Scans(scans, pack_scans(model, tile, context, header.quality_code, scans))
    return pack(model, tile, context, header.quality_code)


def from_bytes(
    model: OneQuality, header: Header, place: Tile, data: Coded, device: torch.device, steps: int | None = None
) -> CodedTile:
    """A tile's symbols, as far as its scans tell; ``OSError`` if they fail its checksum.

    ``steps``: of what is in one piece, only the first of the context model's steps.
    """
    if isinstance(data, bytes):
        return decode_symbols(model, header, place, data, device, steps)
    if not isinstance(model, Model):
        raise OSError("damaged LIC file: a published codec's file has no scans")
    return decode_scans(model, header, place, data.parts, data.count, device)
