"""A tile's symbols and their bytes: all that has to be the same on every machine."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.devices import block_dtype
from pillow_lic.entropy.coder import LIMIT, Indices, SymbolDecoder, SymbolEncoder, Symbols
from pillow_lic.entropy.context import ExactContext
from pillow_lic.entropy.exact import GAIN_BITS, MEAN_BITS
from pillow_lic.entropy.passes import Given
from pillow_lic.header import Header
from pillow_lic.models.compressai.family import CodedLatents, FamilyModel
from pillow_lic.models.context.schedule import HYPER
from pillow_lic.models.hyperprior import HYPER_STRIDE
from pillow_lic.models.loading import Model, OneQuality
from pillow_lic.options import quality_of
from pillow_lic.pixels import Tile, pad_to_multiple
from pillow_lic.quantizers import adaptive, diamond, lattice, scalar
from pillow_lic.quantizers.adaptive import Levels, Priors
from pillow_lic.quantizers.cosets import Cosets
from pillow_lic.quantizers.diamond import Diamond
from pillow_lic.quantizers.lattice import KINDS, Lattice

CPU = torch.device("cpu")
"""Where z is coded: it is too small to be worth a GPU's while."""


@dataclass(frozen=True)
class CodedTile:
    """A tile's symbols of z (N, h, w) and y (M, h, w), and what is known of y's before it is read.

    Of a progressive file that is cut, symbols with an index below ``reached`` are missing, and 0.  ``unread``
    are those that a draft leaves out.  Several ``tiles`` of one size may lie one below the other.  ``quality_code`` is
    the file's; of published codecs, whose networks have one quality each, it says nothing.
    """

    z: Symbols
    z_index: Indices
    y: Symbols
    priors: Priors
    lattice: Cosets | None = None
    levels: Levels | None = None
    reached: int = 0
    unread: NDArray[np.bool_] | None = None
    tiles: int = 1
    quality_code: int = 0

    @property
    def steps(self) -> NDArray[np.float32]:
        """How many steps y lies from its means, (M, h, w): the symbols, and half a step where a lattice says so."""
        steps: NDArray[np.float32] = self.y.astype(np.float32)
        if self.lattice is not None:
            half = self.lattice.half
            if self.reached:
                half = half & (self.priors.index.cpu().numpy() >= self.reached)
            if self.unread is not None:
                half = half & ~self.unread
            steps += half.view(np.int8) * np.float32(0.5)
        return steps


def quality_tensor(quality_code: int, device: torch.device) -> Tensor:
    """A quality as networks take it, (1,)."""
    # Filled, not copied: a copy would wait for the GPU.
    return torch.full((1,), quality_of(quality_code), dtype=torch.float32, device=device)


def quantise(
    model: OneQuality,
    y: Tensor,
    quality_code: int,
    quality: Tensor,
    quantizer: str = "scalar",
    levels: Levels | None = None,
) -> CodedTile:
    """Symbols of z and y for latents (1, M, h, w) in nominal steps; ``levels`` make steps finer or coarser."""
    if isinstance(model, FamilyModel):
        return _tile_of(model.quantise(y))
    return with_hyper(model, hyper_steps(model, y, quality_code, quality), y, quality_code, quantizer, levels)


def hyper_steps(model: Model, y: Tensor, quality_code: int, quality: Tensor) -> NDArray[np.float64]:
    """z (N, h, w) in steps from its means, for latents (1, M, H, W) in nominal steps."""
    z_gain, z_mean, _ = model.hyper_synthesis(y.device).z_prior(quality_code)
    analysis = model.hyper_analysis(y.device, block_dtype(y.device))
    z: NDArray[np.float64] = analysis(pad_to_multiple(y, HYPER_STRIDE), quality)[0].cpu().double().numpy()
    return z * (2.0**GAIN_BITS / z_gain)[:, None, None] - (z_mean / 2.0**MEAN_BITS)[:, None, None]


def with_hyper(
    model: Model,
    z: NDArray[np.float64],
    y: Tensor,
    quality_code: int,
    quantizer: str = "scalar",
    levels: Levels | None = None,
) -> CodedTile:
    """Symbols of z for z in steps (N, h, w), and those of y that follow; see :func:`quantise`."""
    device = y.device
    z_indices = _spread(model.hyper_synthesis(device).z_prior(quality_code)[2], z.shape)
    z_symbols = np.where(z_indices < model.tables.skip, 0, np.clip(np.rint(z), -LIMIT, LIMIT)).astype(np.int16)
    priors = priors_of(model, z_symbols, quality_code, y.shape[2:], device).adapted(levels, len(model.tables))
    nothing = np.zeros(0, np.int16)
    tile = CodedTile(z_symbols, z_indices, nothing, priors, levels=levels, quality_code=quality_code)
    if quantizer != "scalar":
        on_lattice, priors = _on_lattice(model, quantizer, priors)
        tile = replace(tile, lattice=on_lattice, priors=priors)
    steps = y[0] if priors.factor is None else y[0] * priors.factor
    return with_residual(model, tile, steps - priors.mean.to(y.dtype) / 2**MEAN_BITS)


def with_residual(model: Model, tile: CodedTile, residual: Tensor) -> CodedTile:
    """The tile with the symbols of y, by its quantiser, for latents so many steps (M, h, w) from their means."""
    symbols = scalar.quantise(residual, tile.priors.index, model.tables.skip).cpu().numpy().astype(np.int16)
    on = tile.lattice
    if isinstance(on, Lattice):
        floors, coset = lattice.quantise(residual.cpu().numpy().ravel()[on.members], on.kind)
        symbols.reshape(-1)[on.members] = floors
        return replace(tile, y=symbols, lattice=replace(on, coset=coset))
    if isinstance(on, Diamond):
        symbols[on.wide], coset = diamond.quantise(residual.cpu().numpy(), on.wide)
        return replace(tile, y=symbols, lattice=replace(on, coset=coset))
    return replace(tile, y=symbols)


def pack(model: OneQuality, tile: CodedTile, context: str) -> bytes:
    """A tile's bytes: the checksum of its symbols, then the range coder's stream."""
    coder = SymbolEncoder()
    if isinstance(model, FamilyModel):
        model.write(coder, CodedLatents(tile.z, tile.y, tile.priors.mean, tile.priors.index))
        return seal(tile, coder)
    encode_hyper(model, tile, coder, context)
    if tile.lattice is not None:
        encode_cosets(tile.lattice, coder)
    if context == "none" and tile.lattice is None:
        coder.encode(tile.y.ravel(), flat(tile.priors.index), model.tables)
    else:
        network = model.context(context, tile.priors.index.device)
        network.encode(coder, tile.y, given(model, tile))
    return seal(tile, coder)


def encode_hyper(model: Model, tile: CodedTile, coder: SymbolEncoder, context: str) -> None:
    """Append what all of y rests on: levels and z, which has a context model of its own where y has one."""
    if tile.levels is not None:
        adaptive.encode(coder, tile.levels)
    if _hyper_in_context(model, context):
        model.context(HYPER, CPU).encode(coder, tile.z, given_of_z(model, tile.z_index, tile.quality_code))
    else:
        coder.encode(tile.z.ravel(), tile.z_index.ravel(), model.tables)


def _hyper_in_context(model: Model, context: str) -> bool:
    return context != "none" and model.hyper is not None


def given_of_z(model: Model, index: Indices, quality_code: int, tiles: int = 1) -> Given:
    """What z's context model knows before it is read: what depends on the quality alone."""
    hidden = torch.zeros((0, *index.shape[1:]), dtype=torch.float32, device=CPU)
    return Given(torch.from_numpy(index.copy()), hidden, quality_code, model.tables.skip, tiles=tiles)


def encode_cosets(on: Cosets, coder: SymbolEncoder, wanted: NDArray[np.bool_] | None = None) -> None:
    """Append the cosets, or the wanted ones of them."""
    on.write(coder, on.coset if wanted is None else on.coset[wanted])


def seal(tile: CodedTile, coder: SymbolEncoder) -> bytes:
    """The checksum of a tile's symbols, and the stream that a coder has made."""
    return struct.pack("<I", *_checksums(tile)) + coder.finish()


def decode_symbols(
    model: OneQuality, header: Header, tile: Tile, data: bytes, device: torch.device, channels: int | None = None
) -> CodedTile:
    """A tile's symbols; ``OSError`` if they fail its checksum.

    With ``channels`` only as many as it takes to know the first channels, which no checksum proves.
    """
    if not isinstance(model, FamilyModel):
        return decode_stack(model, header, [tile], [data], device, channels)
    model.check(header.context, header.quantizer, header.adaptive)
    (coder,) = _streams([data])
    return checked(_tile_of(model.read(coder, *tile.size, device)), [data])


def decode_stack(
    model: Model,
    header: Header,
    tiles: Sequence[Tile],
    data: Sequence[bytes],
    device: torch.device,
    channels: int | None = None,
) -> CodedTile:
    """The symbols of tiles of one size, which go through the networks together; otherwise the same.

    Several must have no levels, and a context whose passes know of tiles: any but volume.
    """
    coders = _streams(data)
    found = decode_hyper(model, header, tiles[0], coders, device)
    if found.lattice is not None:
        found = replace(found, lattice=decode_cosets(found.lattice, coders))
    if header.context == "none" and found.lattice is None:
        parts = np.split(found.priors.index.cpu().numpy(), len(coders), axis=1)
        read = [c.decode(part.ravel(), model.tables).reshape(part.shape) for c, part in zip(coders, parts, strict=True)]
        return checked(replace(found, y=np.concatenate(read, axis=1)), data)
    network = context_to_decode(model, header.context, found.lattice, device)
    y = network.decode(coders, given(model, found), channels)
    height = y.shape[1] // len(tiles)
    if channels is not None and (unread := network.beyond(channels, len(tiles), height, y.shape[2])).any():
        return replace(found, y=y, unread=unread)
    return checked(replace(found, y=y), data)


def _streams(data: Sequence[bytes]) -> list[SymbolDecoder]:
    if min(map(len, data)) < 4:
        raise OSError("damaged LIC file: a tile is too short")
    return [SymbolDecoder(d[4:]) for d in data]


def decode_hyper(
    model: Model, header: Header, tile: Tile, coders: Sequence[SymbolDecoder], device: torch.device
) -> CodedTile:
    """Levels and z of tiles like this one and what they say of y; no cosets and no symbols of y yet."""
    size = tile.size
    z_shape = (model.arch.hyperlatents, -(-size[0] // HYPER_STRIDE), -(-size[1] // HYPER_STRIDE))
    levels = adaptive.decode(coders[0], *z_shape[1:]) if header.adaptive else None
    by_channel = model.hyper_synthesis(device).z_prior(header.quality_code)[2]
    z_index = _spread(by_channel, (z_shape[0], len(coders) * z_shape[1], z_shape[2]))
    if _hyper_in_context(model, header.context):
        known = given_of_z(model, z_index, header.quality_code, len(coders))
        z = context_to_decode(model, HYPER, None, CPU).decode(coders, known)
    else:
        indices = _spread(by_channel, z_shape).ravel()
        z = np.concatenate([coder.decode(indices, model.tables).reshape(z_shape) for coder in coders], axis=1)
    priors = priors_of(model, z, header.quality_code, size, device).adapted(levels, len(model.tables))
    on: Cosets | None = None
    if header.quantizer != "scalar":
        try:
            on, priors = _on_lattice(model, header.quantizer, priors, len(coders))
        except ValueError as error:
            raise OSError(f"this LIC file cannot be decoded: {error}") from error
    y = np.zeros(priors.index.shape, np.int16)
    return CodedTile(z, z_index, y, priors, on, levels, tiles=len(coders), quality_code=header.quality_code)


def decode_cosets(on: Cosets, coders: Sequence[SymbolDecoder], wanted: NDArray[np.bool_] | None = None) -> Cosets:
    """The same with all cosets read, those of a tile from each coder, or with the wanted ones of a single tile."""
    coset = on.coset.copy()
    place = slice(None) if wanted is None else wanted
    counts = on.by_tile(len(coders)).tolist() if wanted is None else [coset[place].size]
    coset[place] = np.concatenate([on.read(coder, count) for coder, count in zip(coders, counts, strict=True)])
    return on.holding(coset)


def checked(tile: CodedTile, data: Sequence[bytes]) -> CodedTile:
    """The tile or tiles, if their symbols are those that their bytes' checksums are of; otherwise ``OSError``."""
    if [struct.unpack_from("<I", d)[0] for d in data] != _checksums(tile):
        raise OSError("damaged LIC file: the decoded symbols fail their checksum")
    return tile


def _tile_of(coded: CodedLatents) -> CodedTile:
    """A tile of a published codec, whose entropy path is its own."""
    priors = Priors(coded.mean, coded.index, coded.mean[:0])
    return CodedTile(coded.z, np.zeros(0, np.uint8), coded.y, priors)


def _on_lattice(model: Model, quantizer: str, priors: Priors, tiles: int = 1) -> tuple[Cosets, Priors]:
    """Which latents lie on a lattice, all of them on whole steps, and what is then known of all latents.

    Raises ``ValueError`` if the model has no tables for lattices.
    """
    index = priors.index.cpu().numpy()
    if quantizer == "diamond":
        wide = index >= model.lattice_index
        return Diamond(wide, np.zeros(int(diamond.positions(wide).sum()), np.uint8)), priors
    kind = KINDS[quantizer]
    members = lattice.members_of(index, model.lattice_index, kind, tiles)
    found = Lattice(kind, members, kind.cosets(len(members)), index.shape)
    return found, priors.stretched(members, kind.level, len(model.tables))


def given(model: Model, tile: CodedTile) -> Given:
    """What context models may know of a tile's y."""
    index, hidden = tile.priors.index, tile.priors.hidden
    return Given(index, hidden, tile.quality_code, model.tables.skip, tile.lattice, tiles=tile.tiles)


def context_to_decode(model: Model, name: str, lattice: Cosets | None, device: torch.device) -> ExactContext:
    """A model's context; ``OSError`` if it has none of that name, or no tables for a lattice."""
    try:
        network = model.context(name, device)
        network.tables_for(lattice)
        return network
    except ValueError as error:
        raise OSError(f"this LIC file cannot be decoded: {error}") from error


def priors_of(model: Model, z: Symbols, quality_code: int, size: Sequence[int], device: torch.device) -> Priors:
    """The same in the encoder and every decoder; ``size`` is that of a tile's latents, of which z (N, h, w) may hold
    several, one below the other.
    """
    grids = z.reshape(z.shape[0], -1, -(-size[0] // HYPER_STRIDE), z.shape[2])
    found = model.hyper_synthesis(device)(grids, quality_code)
    return Priors(*(x[..., : size[0], : size[1]].flatten(1, 2) for x in found))


def _spread(by_channel: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    return np.broadcast_to(by_channel[:, None, None], shape)


def flat(values: Tensor) -> NDArray[Any]:
    """A tensor's numbers as the range coder takes them."""
    return values.cpu().numpy().ravel()


def _checksums(tile: CodedTile) -> list[int]:
    """CRC-32 of all that the latents of each tile are made of; the tables' indices need none, as symbols tell."""
    whole = (tile.z, tile.y, tile.priors.mean.cpu().numpy())
    z, y, mean = (np.split(x, tile.tiles, axis=1) for x in whole)
    found = [zlib.crc32(np.ascontiguousarray(part, "<i2").data) for part in z]
    found = [zlib.crc32(np.ascontiguousarray(part, "<i2").data, crc) for crc, part in zip(found, y, strict=True)]
    if tile.lattice is not None:
        ends = np.cumsum(tile.lattice.by_tile(tile.tiles))[:-1]
        coset = np.split(tile.lattice.coset.astype(tile.lattice.coset.dtype.newbyteorder("<")), ends)
        found = [zlib.crc32(part.tobytes(), crc) for crc, part in zip(found, coset, strict=True)]
    if tile.levels is not None:
        found = [zlib.crc32(tile.levels.tobytes(), found[0])]
    return [zlib.crc32(np.ascontiguousarray(part, "<i4").data, crc) for crc, part in zip(found, mean, strict=True)]
