"""Files whose symbols no picture has, coded as an encoder would: every checksum is right, down to the symbols'."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from fuzz.seeds import MODEL, OTHERS
from pillow_lic import container
from pillow_lic.codec.tiles import to_bytes
from pillow_lic.container import MAX_SCANS, Frame
from pillow_lic.entropy.coder import LIMIT
from pillow_lic.header import MODES, QUANTIZERS, Animation, Header
from pillow_lic.models.hyperprior import HYPER_STRIDE
from pillow_lic.models.loading import Model, load_model
from pillow_lic.pixels import Tile, tiles_of
from pillow_lic.quantizers import adaptive
from pillow_lic.quantizers.lattice import Lattice
from pillow_lic.symbols import CodedTile, _on_lattice, _spread, priors_of

CPU = torch.device("cpu")
SIDES = (18, 18, 18, 34, 34, 100)
"""Most pictures have a latent position or two on a side, which is enough for every pass of every context."""


def extreme_file(rng: Random) -> bytes:
    """A whole file, right in every respect but its content.  Raises ``ValueError`` for symbols that cannot be coded."""
    model = load_model(rng.choice((MODEL, *OTHERS.values())))
    frames = rng.choice((1, 1, 1, 2))
    width, height = (rng.randrange(1, rng.choice(SIDES)) for _ in "wh")
    header = Header(
        width, height, rng.choice(MODES), model.identity, rng.randrange(1793),
        rng.choice(("none", *model.contexts)), rng.choice(QUANTIZERS), rng.choice((0, 64)), frames, rng.random() < 0.3,
        progressive=rng.random() < 0.2,
    )  # fmt: skip
    scans = rng.randrange(2, MAX_SCANS + 1)
    places = list(tiles_of(header.width, header.height, header.tile))
    alpha = bytes((0, rng.getrandbits(8))) if header.has_alpha else None
    made = []
    for _ in range(frames):
        tiles = [extreme_tile(model, header, place, rng) for place in places]
        made.append(Frame([to_bytes(model, tile, header.context, header, scans) for tile in tiles], alpha))
    return container.write(header, {}, made, Animation(0, (1,) * frames) if frames > 1 else None)


def extreme_tile(model: Model, header: Header, place: Tile, rng: Random) -> CodedTile:
    """Any symbols that the format can hold."""
    h, w = place.bottom - place.top, place.right - place.left
    z_shape = (model.arch.hyperlatents, -(-h // HYPER_STRIDE), -(-w // HYPER_STRIDE))
    z_index = _spread(model.exact.z_prior(header.quality_code)[2], z_shape)
    z = np.where(z_index < model.tables.skip, 0, _symbols(z_shape, rng)).astype(np.int16)
    levels = None
    if header.adaptive:
        levels = _any(rng, -adaptive.LIMIT, adaptive.LIMIT, z_shape[1:]).astype(np.int8)
    priors = priors_of(model, z, header.quality_code, (h, w), CPU).adapted(levels, len(model.tables))
    index = priors.index.numpy()
    y = np.where(index < model.tables.skip, 0, _symbols(index.shape, rng)).astype(np.int16)
    tile = CodedTile(z, z_index, y, priors, levels=levels, quality_code=header.quality_code)
    if header.quantizer == "scalar":
        return tile
    on, priors = _on_lattice(model, header.quantizer, priors)
    words = 2
    if isinstance(on, Lattice):
        words = len(on.kind.words)
        groups = y.ravel()[on.members]
        last = np.full(len(groups), groups.shape[1] - 1) if on.last is None else on.last
        groups[np.arange(len(groups)), last] ^= (groups.sum(axis=1) & 1).astype(np.int16)  # a point's sum is even
        y.put(on.members, groups)
    coset = _any(rng, 0, words - 1, on.coset.shape).astype(on.coset.dtype)
    return replace(tile, priors=priors, lattice=replace(on, coset=coset))


def _symbols(shape: tuple[int, ...], rng: Random) -> NDArray[np.int64]:
    """Zeros, small ones, large ones, and a few of the largest."""
    most = rng.choice((0, 1, 3, 50, 3000, LIMIT - 2**10))
    found = _any(rng, -most, most, shape)
    return np.where(_any(rng, 0, 9, shape) < rng.choice((0, 1, 9)), found // 50, found)


def _any(rng: Random, low: int, high: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.random.default_rng(rng.getrandbits(32)).integers(low, high, shape, endpoint=True)
