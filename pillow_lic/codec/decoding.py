"""A coded file to pixels, and to another context model."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pillow_lic import alpha, container, options
from pillow_lic.codec.common import contexts_to_try, report, smallest
from pillow_lic.codec.salvage import grey, intact_scans, salvaged
from pillow_lic.codec.tiles import from_bytes, stack_from_bytes, stacks, to_bytes
from pillow_lic.container import Coded, Frame, Scans
from pillow_lic.devices import block_dtype, choose_device, or_on_cpu, quiet
from pillow_lic.header import Header
from pillow_lic.models.draft import FITTED_SCALE, Draft, channels_for
from pillow_lic.models.loading import Model, OneQuality, model_by_identity
from pillow_lic.models.transforms import LATENT_STRIDE
from pillow_lic.pixels import Pixels, Tile, latent_size, put_pixels, step_of, tiles_of
from pillow_lic.quantizers import scalar
from pillow_lic.symbols import quality_tensor
from pillow_lic.warning import warn

STRIP = 4096
"""Latent positions of neighbouring tiles that are synthesised together."""


def decode(
    header: Header,
    frame: Frame,
    device: str | None = None,
    box: tuple[int, int, int, int] | None = None,
    *,
    scale: int = 1,
    shown: float = 1,
    threads: int | None = None,
) -> Pixels:
    """The pixels of a frame, (H, W) or (H, W, 2 to 4) uint8.

    ``box`` (left, top, right, bottom) asks for a part of them, for which only the tiles in and next to
    it are decoded; ``scale`` 2, 4 or 8 for the whole picture at 1/scale, rounded up, which
    need not show more than 1/``shown`` of the size does: one of both.  Raises ``OSError`` if
    the data are damaged or their model is not installed.  Of a ``damaged`` frame what is certainly right is
    shown, and a warning tells how much is not.
    """
    if box is not None and scale > 1:
        raise ValueError("a part of a picture is decoded at its full size")
    model, _ = model_by_identity(header.model_id, header.model_name).at_quality(header.quality_code)
    left, top, right, bottom = box or (0, 0, header.width, header.height)
    tiles = tiles_of(header.width, header.height, header.tile)
    wanted = [(n, tile) for n, tile in enumerate(tiles) if tile.meets(left, top, right, bottom)]
    first = wanted[0][1]
    size = (wanted[-1][1].bottom - first.top, wanted[-1][1].right - first.left)
    origin = (LATENT_STRIDE * first.left, LATENT_STRIDE * first.top)
    width = -(-min(LATENT_STRIDE * size[1], header.width - origin[0]) // scale)
    height = -(-min(LATENT_STRIDE * size[0], header.height - origin[1]) // scale)
    array = np.empty((height, width, 3)[: 3 if header.mode.startswith("RGB") else 2], np.uint8)

    def fill(on: torch.device) -> None:
        with quiet(on, threads or options.defaults.threads):
            coded: Sequence[Coded | None] = frame.tiles
            if frame.damaged:
                coded = (intact_scans if header.progressive else salvaged)(model, header, frame.tiles, on)
            _synthesise(_View(model, header, on, scale, shown), coded, dict(wanted), array)

    or_on_cpu(choose_device(device, (right - left) * (bottom - top)), fill)
    if box is not None:
        array = array[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]]
    data = transparency_of(frame)
    if data is None:
        return array
    transparency = alpha.unpack(data, header.width, header.height)[top:bottom, left:right]
    if scale > 1:
        transparency = np.asarray(Image.fromarray(transparency).reduce(scale))
    return np.dstack([array, transparency])


def transparency_of(frame: Frame) -> bytes | None:
    """A frame's coded transparency, if it has any: opaque, with a warning, if its checksum is wrong and the reader
    lenient.
    """
    if frame.alpha == b"":
        warn("damaged LIC file: the transparency is left out")
        return alpha.OPAQUE
    return frame.alpha


def transcode(data: bytes, context: str, device: str | None = None) -> bytes:
    """Code a LIC file anew with another context model; pixels, latents and metadata stay the same.

    Raises ``OSError`` if the data are damaged or their model is not installed, ``SyntaxError`` if
    they are no LIC file, ``ValueError`` if the model has no such context, ``DecompressionBombError`` as
    ``Image.open`` does.
    """
    reader = container.Reader(io.BytesIO(data))
    Image._decompression_bomb_check((reader.header.width, reader.header.height))
    metadata, header = reader.metadata(), reader.header
    family = model_by_identity(header.model_id, header.model_name)
    model, _ = family.at_quality(header.quality_code)
    contexts = contexts_to_try(family, context)
    coded = list(reader.frames())

    def work(on: torch.device) -> list[dict[str, list[Coded]]]:
        with quiet(on, options.defaults.threads):
            return _recoded(model, header, coded, contexts, on)

    frames = or_on_cpu(choose_device(device, header.width * header.height), work)
    best, chosen = smallest(frames, [frame.alpha for frame in coded])
    return container.write(replace(header, context=best), metadata, chosen, reader.animation)


def _recoded(
    model: OneQuality, header: Header, frames: Sequence[Frame], contexts: Sequence[str], on: torch.device
) -> list[dict[str, list[Coded]]]:
    """Each frame's tiles by the context model that they are coded with anew."""
    found = []
    work = count(1)
    for frame in frames:
        tiles: dict[str, list[Coded]] = {name: [] for name in contexts}
        for place, part in zip(tiles_of(header.width, header.height, header.tile), frame.tiles, strict=True):
            tile = from_bytes(model, header, place, part, on)
            scans = part.count if isinstance(part, Scans) else 1
            for name in contexts:
                tiles[name].append(to_bytes(model, tile, name, header, scans))
            report(next(work), header.frames * header.tiles)
        found.append(tiles)
    return found


@dataclass(frozen=True)
class _View:
    """What is decoded, where, at which 1/scale, and at which 1/shown somebody looks at it."""

    model: OneQuality
    header: Header
    device: torch.device
    scale: int = 1
    shown: float = 1

    @cached_property
    def draft(self) -> Draft | None:
        """What takes the synthesis transform's place where little is to be seen."""
        if self.scale < FITTED_SCALE or not isinstance(self.model, Model):
            return None
        return self.model.draft(self.device)

    @property
    def channels(self) -> int:
        """Latent channels that are looked at."""
        return self.model.arch.latents if self.draft is None else self.draft.channels

    @property
    def margin(self) -> int:
        """Latent positions around a tile that its pixels depend on."""
        return self.model.arch.synthesis_margin if self.draft is None else self.draft.margin

    def pixels(self, y: Tensor) -> Tensor:
        """Pixels (3, H, W) at 1/scale of latents (1, channels, h, w)."""
        if self.draft is not None:
            found: Tensor = self.draft(y, self.scale)
        else:
            network = self.model.synthesis(y.device, block_dtype(y.device))
            found = network(y, quality_tensor(self.header.quality_code, y.device), self.scale)
        return found[0]


def _synthesise(view: _View, coded: Sequence[Coded | None], wanted: Mapping[int, Tile], array: Pixels) -> None:
    """Decode the wanted tiles (by number, a rectangle of them) into an array that holds just them, at 1/scale;
    those that are None become grey.

    A tile's pixels are made once the latents around it are decoded too, together with its neighbours' to the right;
    latents are kept for three rows of tiles at a time.
    """
    header = view.header
    h, w = latent_size(header.height), latent_size(header.width)
    waiting = list(wanted.items())
    first, last = waiting[0][1], waiting[-1][1]
    near = Tile(0, first.top, last.bottom, first.left, last.right).grown(view.margin, h, w)
    box = [LATENT_STRIDE * n for n in (near.left, near.top, near.right, near.bottom)]
    needed = [
        (tile, data)
        for tile, data in zip(tiles_of(header.width, header.height, header.tile), coded, strict=True)
        if tile.meets(*box)
    ]
    latents: dict[int, Tensor] = {}
    in_turn = ((tile, y) for stack in stacks(view.model, header, needed)
               for (tile, _), y in zip(stack, _latents(view, stack), strict=True))  # fmt: skip
    for tile, found in in_turn:
        if tile.row not in latents:
            rows = (view.channels, tile.bottom - tile.top, w)
            latents[tile.row] = torch.empty(rows, dtype=torch.float32, device=view.device)
            latents.pop(tile.row - 3, None)
        latents[tile.row][:, :, tile.left : tile.right] = found
        if tile.right >= near.right:
            while waiting and (tile.bottom >= near.bottom or waiting[0][1].row < tile.row):
                before = len(wanted) - len(waiting)
                whole, done = _strip(waiting, coded)
                place = Tile(done.row, done.top - first.top, done.bottom - first.top,
                             done.left - first.left, done.right - first.left)  # fmt: skip
                put_pixels(array, place, _pixels(view, done, latents) if whole else grey(done, view.scale), view.scale)
                for number in range(before, len(wanted) - len(waiting)):
                    report(number + 1, len(wanted))


def _strip(waiting: list[tuple[int, Tile]], coded: Sequence[Coded | None]) -> tuple[bool, Tile]:
    """Take the next tiles of a row from those waiting, as one: whether there are data, and its place.

    Together they need a margin at the outer sides only.
    """
    index, tile = waiting.pop(0)
    whole = coded[index] is not None
    while whole and waiting and coded[waiting[0][0]] is not None:
        after = waiting[0][1]
        if after.row != tile.row or (after.right - tile.left) * (tile.bottom - tile.top) > STRIP:
            break
        tile = replace(tile, right=after.right)
        waiting.pop(0)
    return whole, tile


def _latents(view: _View, stack: Sequence[tuple[Tile, Coded | None]]) -> Sequence[Tensor]:
    """What is looked at of y of some tiles, (channels, h, w) each."""
    channels = None if view.draft is None else channels_for(view.shown)
    found = tile_latents(view.model, view.header, stack, view.device, channels)
    return [y[: view.channels] for y in found]


def tile_latents(
    model: OneQuality,
    header: Header,
    stack: Sequence[tuple[Tile, Coded | None]],
    device: torch.device,
    channels: int | None = None,
) -> Sequence[Tensor]:
    """y of tiles that are read together, in the synthesis transform's units, (M, h, w) float32 each; zeros if there
    are no data.

    If only the first ``channels`` are asked for, what is coded after all of these lies at its mean.
    """
    coded = [(tile, data) for tile, data in stack if data is not None]
    if not coded:
        return [torch.zeros((model.arch.latents, *tile.size), dtype=torch.float32, device=device) for tile, _ in stack]
    found = stack_from_bytes(model, header, coded, device, channels)
    steps = torch.from_numpy(found.steps).to(device)
    gain = model.inverse_gain(options.quality_of(header.quality_code)).to(device)
    y = scalar.dequantise(steps, found.priors.mean).mul_(gain)
    if found.priors.factor is not None:
        y.div_(found.priors.factor)
    return y.chunk(len(coded), dim=1)


def _pixels(view: _View, tile: Tile, latents: Mapping[int, Tensor]) -> Tensor:
    """One tile's pixels (3, H, W) at 1/scale, synthesised from its latents and a margin of its neighbours'."""
    h, w = latent_size(view.header.height), latent_size(view.header.width)
    step = step_of(view.header.width, view.header.height, view.header.tile)
    around = tile.grown(min(view.margin, step), h, w)
    held = [r for r in range(tile.row - 1, tile.row + 2) if r in latents]  # of a region those that margins reach
    rows = [latents[r][:, :, around.left : around.right] for r in held]
    y = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    y = y[:, around.top - held[0] * step : around.bottom - held[0] * step]
    output = view.pixels(y[None].contiguous(memory_format=torch.channels_last))
    stride = LATENT_STRIDE // view.scale
    return output[:, stride * (tile.top - around.top) :, stride * (tile.left - around.left) :]
