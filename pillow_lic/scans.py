"""Progressive files: a tile's symbols in scans, those that bring most to the picture for each bit first.

What a symbol brings is its variance, and what it takes grows with the logarithm of that.  So a scan holds
all latents whose scale index lies in a band, from the widest scales down to those that are not coded at
all: an order that decoders know from z.  Within a scan the context model's own order holds, and it sees
what earlier scans brought.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pillow_lic.container import MAX_SCANS
from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder
from pillow_lic.header import Header
from pillow_lic.models.loading import Model
from pillow_lic.pixels import Tile
from pillow_lic.quantizers.cosets import Cosets
from pillow_lic.symbols import (
    CodedTile,
    checked,
    context_to_decode,
    decode_cosets,
    decode_hyper,
    encode_cosets,
    encode_hyper,
    given,
    pack,
    seal,
)

SCAN_BYTES = 5000
"""A scan more for each so many bytes of a tile."""

GROWTH = 0.01
"""How much scans may add to a tile: each costs about ten bytes, and some of what context models know."""

INDEX_BYTES = 3
"""What a scan takes in the frame's index, at most, but for the largest."""

END = 255
"""Above every scale index."""


def scans_for(model: Model, tile: CodedTile, context: str) -> int:
    """In how many scans to send a picture that begins with a tile: as many as it is worth, at least 2."""
    plain = len(pack(model, tile, context))
    count = min(MAX_SCANS, 2 + plain // SCAN_BYTES)
    while count > 2:
        scans = pack_scans(model, tile, context, count)
        if sum(map(len, scans)) + INDEX_BYTES * count <= (1 + GROWTH) * plain:
            break
        count -= 1
    return count


def pack_scans(model: Model, tile: CodedTile, context: str, count: int) -> list[bytes]:
    """A tile's bytes in so many scans; each begins with the checksum of all symbols up to its end.

    The first goes on with the bands' lower ends, a byte each but for the last one, which is the model's skip.
    """
    lows = _lows(model, tile, count)
    index = tile.priors.index.cpu().numpy()
    tile = replace(tile, lattice=_in_order_of_scans(tile.lattice, index, lows))
    scans = []
    for number, (low, high) in enumerate(_bands(lows)):
        coder = SymbolEncoder()
        if not number:
            encode_hyper(model, tile, coder, context)
        before, now = _as_known(tile, index, high), _as_known(tile, index, low)
        if now.lattice is not None:
            encode_cosets(now.lattice, coder, _cosets_of(now.lattice, index, low, high))
        if context == "none" and tile.lattice is None:
            here = (index >= low) & (index < high)
            coder.encode(tile.y[here], index[here], model.tables)
        else:
            known = replace(given(model, now), skip=low, limit=high, known=before.y)
            model.context(context, tile.priors.index.device).encode(coder, tile.y, known)
        sealed = seal(now, coder)
        scans.append(sealed if number else sealed[:4] + bytes(lows[:-1]) + sealed[4:])
    return scans


def decode_scans(
    model: Model, header: Header, place: Tile, scans: Sequence[bytes], count: int, device: torch.device
) -> CodedTile:
    """The symbols of a tile from the first scans of ``count``; what they leave out is missing.

    ``OSError`` if they fail the last one's checksum.
    """
    if not scans or min(map(len, scans)) < 4 or len(scans[0]) < 4 + count - 1:
        raise OSError("damaged LIC file: a scan is too short")
    lows = [*scans[0][4 : 4 + count - 1], model.tables.skip]
    if lows != sorted(lows, reverse=True):
        raise OSError("damaged LIC file: scans in an impossible order")
    streams = [scans[0][4 + count - 1 :], *(scan[4:] for scan in scans[1:])]
    found: CodedTile | None = None
    unordered: Cosets | None = None
    for stream, (low, high) in zip(streams, _bands(lows), strict=False):
        coder = SymbolDecoder(stream)
        if found is None:
            found = decode_hyper(model, header, place, [coder], device)
            index, unordered = found.priors.index.cpu().numpy(), found.lattice
            found = replace(found, lattice=_in_order_of_scans(found.lattice, index, lows))
        if found.lattice is not None:
            known = decode_cosets(found.lattice, [coder], _cosets_of(found.lattice, index, low, high))
            found = replace(found, lattice=known)
        if header.context == "none" and found.lattice is None:
            here = (index >= low) & (index < high)
            found.y[here] = coder.decode(index[here], model.tables)
        else:
            network = context_to_decode(model, header.context, found.lattice, device)
            before = replace(given(model, found), skip=low, limit=high, known=found.y)
            found = replace(found, y=network.decode([coder], before))
    assert found is not None
    cut = lows[len(scans) - 1] if len(scans) < count else 0
    # Whoever codes the tile anew has scans of its own.
    lattice = unordered and found.lattice and unordered.holding(found.lattice.coset)
    return checked(replace(found, reached=cut, lattice=lattice), scans[-1:])


def _lows(model: Model, tile: CodedTile, count: int) -> list[int]:
    """Lower ends of bands of scale indices, descending; the first bands take fewer of the bits of y."""
    index = tile.priors.index.cpu().numpy().ravel()
    bits = np.bincount(index, model.tables.bits(tile.y.ravel(), index), minlength=len(model.tables))
    share = bits[::-1].cumsum()[::-1] / max(bits.sum(), 1.0)
    ends = [int((share >= ((n + 1) / count) ** 1.5).sum()) - 1 for n in range(count - 1)]
    return [*(max(end, model.tables.skip) for end in ends), model.tables.skip]


def _bands(lows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Lower and upper end of each scan's indices."""
    return zip(lows, [END, *lows[:-1]], strict=True)


def _as_known(tile: CodedTile, index: NDArray[np.uint8], low: int) -> CodedTile:
    """What a decoder knows of a tile once all symbols with indices from ``low`` on are read."""
    on = tile.lattice
    if on is not None:
        on = on.holding(on.coset * _cosets_of(on, index, low, END))
    return replace(tile, y=tile.y * (index >= low), lattice=on)


def _cosets_of(on: Cosets, index: NDArray[np.uint8], low: int, high: int) -> NDArray[np.bool_]:
    """Which cosets come with a band: those of which the widest latent lies in it."""
    widest = on.widest(index)
    found: NDArray[np.bool_] = (widest >= low) & (widest < high)
    return found


def _in_order_of_scans(on: Cosets | None, index: NDArray[np.uint8], lows: Sequence[int]) -> Cosets | None:
    """The same groups, the last of each being one that no scan brings before any of the others."""
    scan_of = np.searchsorted(-np.array(lows), -np.arange(END + 1))  # by scale index
    return on and on.coded_by(scan_of.astype(np.int32)[index])
