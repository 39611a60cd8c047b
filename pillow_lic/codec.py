"""From pixels and options to a coded file and back: the only module that knows every stage.

Saving: analysis transform, hyperprior, quantiser, range coder, container.  Opening: the same
backwards.  Only the symbols and what decides their probabilities need to be exact; the synthesis
transform is ordinary floating point.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pillow_lic import alpha, container, options
from pillow_lic.container import MAX_QUALITY_CODE, Animation, Frame, Header
from pillow_lic.devices import block_dtype, choose_device, quiet
from pillow_lic.entropy.exact import MEAN_BITS
from pillow_lic.models.loading import Model, load_model, model_by_identity
from pillow_lic.models.transforms import LATENT_STRIDE, rate_weight
from pillow_lic.options import EncoderOptions
from pillow_lic.pixels import (
    Pixels,
    Tile,
    check_pixels,
    default_tile,
    latent_size,
    psnr,
    put_pixels,
    tile_pixels,
    tiles_of,
)
from pillow_lic.quantizers import adaptive, scalar
from pillow_lic.search.refine import STEPS
from pillow_lic.search.target import largest
from pillow_lic.search.tile import improve
from pillow_lic.search.view import TileView
from pillow_lic.symbols import CodedTile, decode_symbols, pack, quantise

on_progress: ContextVar[Callable[[int, int], None] | None] = ContextVar("on_progress", default=None)
"""Called with the work done and all there is: tiles, and steps of the encoder's search."""


class Encoder(Protocol):
    """Makes a file at a quality code; quickly, one that tells about how large and how good it would be."""

    def __call__(self, code: int, *, quickly: bool = False) -> bytes:  # noqa: D102
        ...


def encode(
    frames: Pixels | Sequence[Pixels],
    opts: EncoderOptions,
    metadata: Mapping[str, bytes] | None = None,
    animation: Animation | None = None,
    roi: Pixels | None = None,
) -> bytes:
    """Code a picture, (H, W) or (H, W, 2 to 4) uint8 pixels, or several of one shape, as a LIC file.

    The last of 2 or 4 channels is alpha.  ``roi`` (H, W) is a mask: what lies under its bright parts gets
    finer steps, under its dark parts coarser ones.  Raises ``TypeError`` and ``ValueError`` for pixels that LIC
    does not take, for models that are not installed and for targets out of reach.
    """
    pictures = [frames] if isinstance(frames, np.ndarray) else list(frames)
    mode = check_pixels(pictures[0])
    if any(check_pixels(p) != mode or p.shape != pictures[0].shape for p in pictures):
        raise ValueError("all frames of a LIC file must have the same size and mode")
    height, width = pictures[0].shape[:2]
    model = load_model(opts.model_name)
    side = default_tile(width, height) if opts.tile is None else opts.tile
    if not side and not container.fits_one_tile(width, height):
        raise ValueError(f"a picture of {width}x{height} pixels is too large for one tile; leave tile out")
    header = Header(
        width, height, mode, model.identity, opts.quality_code, "none", _quantizer(model, opts), side, len(pictures),
        adaptive=roi is not None,
    )  # fmt: skip
    if roi is not None and (roi.dtype != np.uint8 or roi.shape != (height, width)):
        raise ValueError(f"roi must be an 8-bit grey picture of {width}x{height} pixels")
    if len(pictures) > 1 and animation is None:
        animation = Animation(0, (0,) * len(pictures))
    coded = [_split_alpha(p, opts) if header.has_alpha else (p, None) for p in pictures]
    levels = None if roi is None else adaptive.levels_of(roi, latent_size(height), latent_size(width))
    contexts = _contexts(model, opts.context)
    device = choose_device(opts.device, width * height)

    def at(code: int, *, quickly: bool = False) -> bytes:
        there, names, effort = replace(header, quality_code=code), contexts, opts.effort
        if quickly:
            names, effort = ["none"], 0
        best, found = _encode(model, coded, there, levels, names, effort, device)
        return container.write(replace(there, context=best), metadata or {}, found, animation)

    with quiet(device):
        if opts.target is None:
            return at(opts.quality_code)
        kind, wanted = opts.target
        if kind == "target_psnr":
            return _at_psnr([colour for colour, _ in coded], at, wanted, opts.device)
        return _at_size(at, kind, wanted, width * height * len(pictures))


def _split_alpha(array: Pixels, opts: EncoderOptions) -> tuple[Pixels, bytes]:
    """Colours as they are coded, and coded transparency, of (H, W, 2 or 4) pixels."""
    colour, transparency = array[:, :, :-1], array[:, :, -1]
    if colour.shape[2] == 1:
        colour = colour[:, :, 0]
    shown = colour if opts.exact else alpha.hide_transparent(colour, transparency)
    return shown, alpha.pack(transparency, opts.alpha_quality)


def _encode(
    model: Model,
    pictures: Sequence[tuple[Pixels, bytes | None]],
    header: Header,
    levels: adaptive.Levels | None,
    contexts: Sequence[str],
    effort: int,
    device: torch.device,
) -> tuple[str, list[Frame]]:
    """The context model that makes the frames smallest, and the frames coded with it."""
    frames: list[dict[str, list[bytes]]] = []
    units = 1 + STEPS[effort]
    total = header.frames * header.tiles * units
    done = 0
    for array, _ in pictures:
        tiles: dict[str, list[bytes]] = {name: [] for name in contexts}
        for part in _analysed(model, array, header, device, levels, searching=units > 1):
            tile = part.coded
            if units > 1:
                tile = _search(model, part, header, contexts, effort, (done, total))
            for name in contexts:
                tiles[name].append(pack(model, tile, name, header.quality_code))
            done += units
            _report(done, total)
        frames.append(tiles)
    best = min(contexts, key=lambda name: sum(len(t) for tiles in frames for t in tiles[name]))
    return best, [Frame(tiles[best], packed) for tiles, (_, packed) in zip(frames, pictures, strict=True)]


def _at_size(at: Encoder, kind: str, wanted: float, pixels: int) -> bytes:
    """The best file of at most a wanted size, in bytes or in bits a pixel (of all frames)."""
    unit = 8 / pixels if kind == "target_bpp" else 1.0

    def attempt(code: int, *, quickly: bool = False) -> tuple[bytes, float]:
        data = at(code, quickly=quickly)
        return data, math.log(len(data) * unit)

    found = largest(math.log(wanted), MAX_QUALITY_CODE, lambda code: attempt(code, quickly=True)[1], attempt)
    if found is None:
        raise ValueError(f"{kind} {wanted:g} is out of reach: this picture takes {len(at(0)) * unit:g} at quality 1")
    return found


def _at_psnr(pictures: Sequence[Pixels], at: Encoder, wanted: float, device: str | None) -> bytes:
    """The smallest file of at least a wanted PSNR in dB, over all frames, of colours only."""

    def attempt(below: int, *, quickly: bool = False) -> tuple[bytes, float]:
        data = at(MAX_QUALITY_CODE - below, quickly=quickly)
        reader = container.Reader(io.BytesIO(data))
        reader.metadata()
        shown = [decode(reader.header, replace(frame, alpha=None), device) for frame in reader.frames()]
        return data, -min(100.0, psnr(np.stack(pictures), np.stack(shown)))

    found = largest(-wanted, MAX_QUALITY_CODE, lambda code: attempt(code, quickly=True)[1], attempt)
    if found is None:
        reached = -attempt(0)[1]
        raise ValueError(f"target_psnr {wanted:g} is out of reach: this picture has {reached:.2f} dB at quality 8")
    return found


def decode(
    header: Header, frame: Frame, device: str | None = None, box: tuple[int, int, int, int] | None = None
) -> Pixels:
    """The pixels of a frame, (H, W) or (H, W, 2 to 4) uint8.

    ``box`` (left, top, right, bottom) asks for a part of them, for which only the tiles in and next to
    it are decoded.  Raises ``OSError`` if the data are damaged or their model is not installed.
    """
    model = model_by_identity(header.model_id)
    left, top, right, bottom = box or (0, 0, header.width, header.height)
    on = choose_device(device, (right - left) * (bottom - top))
    tiles = tiles_of(header.width, header.height, header.tile)
    wanted = [(n, tile) for n, tile in enumerate(tiles) if tile.meets(left, top, right, bottom)]
    first = wanted[0][1]
    size = (wanted[-1][1].bottom - first.top, wanted[-1][1].right - first.left)
    origin = (LATENT_STRIDE * first.left, LATENT_STRIDE * first.top)
    width = min(LATENT_STRIDE * size[1], header.width - origin[0])
    height = min(LATENT_STRIDE * size[0], header.height - origin[1])
    array = np.empty((height, width, 3)[: 3 if header.mode.startswith("RGB") else 2], np.uint8)
    with quiet(on):
        _synthesise(model, header, frame.tiles, dict(wanted), array, on)
    array = array[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]]
    if frame.alpha is None:
        return array
    return np.dstack([array, alpha.unpack(frame.alpha, header.width, header.height)[top:bottom, left:right]])


def transcode(data: bytes, context: str, device: str | None = None) -> bytes:
    """Code a LIC file anew with another context model; pixels, latents and metadata stay the same.

    Raises ``OSError`` if the data are damaged or their model is not installed, ``SyntaxError`` if
    they are no LIC file, ``ValueError`` if the model has no such context.
    """
    reader = container.Reader(io.BytesIO(data))
    metadata, header = reader.metadata(), reader.header
    model = model_by_identity(header.model_id)
    contexts = _contexts(model, context)
    on = choose_device(device, header.width * header.height)
    frames = []
    with quiet(on):
        for coded in reader.frames():
            tiles: dict[str, list[bytes]] = {name: [] for name in contexts}
            for place, part in zip(tiles_of(header.width, header.height, header.tile), coded.tiles, strict=True):
                tile = decode_symbols(model, header, place, part, on)
                for name in contexts:
                    tiles[name].append(pack(model, tile, name, header.quality_code))
                _report(len(tiles[contexts[0]]), header.tiles)
            frames.append((tiles, coded.alpha))
    best = min(contexts, key=lambda name: sum(len(t) for tiles, _ in frames for t in tiles[name]))
    chosen = [Frame(tiles[best], transparency) for tiles, transparency in frames]
    return container.write(replace(header, context=best), metadata, chosen, reader.animation)


# -- encoder -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A tile on its way into a file: its place, its symbols, and what an encoder's search needs:
    pixels (1, 3, H, W) and latents in steps (1, M, h, w) of the tile and a margin ``around`` it.
    """

    place: Tile
    coded: CodedTile
    around: Tile
    pixels: Tensor
    y: Tensor


def analyse(model: Model, array: Pixels, header: Header, device: torch.device) -> Iterator[CodedTile]:
    """The symbols of each tile in turn."""
    for part in _analysed(model, array, header, device, None, searching=False):
        yield part.coded


def _analysed(
    model: Model,
    array: Pixels,
    header: Header,
    device: torch.device,
    levels: adaptive.Levels | None,
    *,
    searching: bool,
) -> Iterator[_Part]:
    """Each tile in turn; with margins as wide as the synthesis looks if a search will follow."""
    w, h = latent_size(header.width), latent_size(header.height)
    analysis = model.analysis(device, block_dtype(device))
    quality = _quality(header, device)
    gain = model.gain(options.quality_of(header.quality_code)).to(device)
    margin = model.arch.synthesis_margin if searching else 0
    for tile in tiles_of(header.width, header.height, header.tile):
        around = tile.grown(model.arch.analysis_margin + margin, h, w)
        pixels = tile_pixels(array, around).to(device).contiguous(memory_format=torch.channels_last)
        y = analysis(pixels, quality) * gain
        own = None if levels is None else adaptive.of_tile(levels, tile)
        coded = quantise(model, _crop(y, tile, around), header.quality_code, quality, header.quantizer, own)
        yield _Part(tile, coded, around, pixels, y)


def _search(
    model: Model, part: _Part, header: Header, contexts: Sequence[str], effort: int, progress: tuple[int, int]
) -> CodedTile:
    """The tile with better symbols of y, or as it is if none are found."""
    device, steps = part.y.device, STEPS[effort]
    h, w = latent_size(header.height), latent_size(header.width)
    priors = part.coded.priors
    # Tensors made in inference mode have no gradients, copies of them do.
    with torch.inference_mode(False), torch.enable_grad():
        near = part.place.grown(model.arch.synthesis_margin, h, w)
        pixels = _crop(part.pixels, near, part.around, LATENT_STRIDE).clone()
        y = _crop(part.y, near, part.around).clone()
        network, quality = model.synthesis(device, block_dtype(device)), _quality(header, device)
        view = TileView(
            synthesis=lambda latents: network(latents, quality),
            pixels=pixels,
            around=y,
            top=part.place.top - near.top,
            left=part.place.left - near.left,
            mean=priors.mean.to(torch.float32) / 2**MEAN_BITS,
            coded=(priors.index >= model.tables.skip).clone(),
            inverse_gain=model.inverse_gain(options.quality_of(header.quality_code)).to(device),
            weight=float(rate_weight(quality)),
            measure=model.distortion,
            factor=None if priors.factor is None else priors.factor.clone(),
        )
        if not view.measurable or not bool(view.coded.any()):
            return part.coded
        done = count(progress[0] + 1)
        return improve(
            model,
            part.coded,
            _crop(y, part.place, near)[0] * (1 if view.factor is None else view.factor) - view.mean,
            view,
            contexts,
            header.quality_code,
            steps,
            lambda: _report(next(done), progress[1]),
        )


def _quantizer(model: Model, opts: EncoderOptions) -> str:
    """The quantiser asked for, or the best that the model has."""
    if opts.quantizer is None:
        return "e8" if model.has_lattice else "scalar"
    if opts.quantizer == "e8":
        model.lattice_index  # noqa: B018  (a clear error before any work)
    return opts.quantizer


def _contexts(model: Model, wanted: str | None) -> list[str]:
    """The context models to code with, of which the smallest result is kept."""
    if wanted == "auto":
        return ["none", *(name for name in options.FAST_CONTEXTS if name in model.contexts)]
    if wanted is None:
        wanted = options.DEFAULT_CONTEXT if options.DEFAULT_CONTEXT in model.contexts else "none"
    if wanted != "none":
        model.context(wanted, torch.device("cpu"))  # a clear error before any work
    return [wanted]


# -- decoder -------------------------------------------------------------------------------


def _synthesise(
    model: Model,
    header: Header,
    coded: Sequence[bytes],
    wanted: Mapping[int, Tile],
    array: Pixels,
    device: torch.device,
) -> None:
    """Decode the wanted tiles (by number, a rectangle of them) into an array that holds just them.

    Each tile's pixels are made once the latents around it are decoded too; latents are kept for three
    rows of tiles at a time.
    """
    h, w = latent_size(header.height), latent_size(header.width)
    waiting = list(wanted.values())
    first, last = waiting[0], waiting[-1]
    near = Tile(0, first.top, last.bottom, first.left, last.right).grown(model.arch.synthesis_margin, h, w)
    latents: dict[int, Tensor] = {}
    for number, tile in enumerate(tiles_of(header.width, header.height, header.tile)):
        if not tile.meets(*(LATENT_STRIDE * n for n in (near.left, near.top, near.right, near.bottom))):
            continue
        if tile.row not in latents:
            rows = (model.arch.latents, tile.bottom - tile.top, w)
            latents[tile.row] = torch.empty(rows, dtype=torch.float32, device=device)
            latents.pop(tile.row - 3, None)
        latents[tile.row][:, :, tile.left : tile.right] = _latents(model, header, tile, coded[number], device)
        if tile.right >= near.right:
            while waiting and (tile.bottom >= near.bottom or waiting[0].row < tile.row):
                done = waiting.pop(0)
                place = Tile(done.row, done.top - first.top, done.bottom - first.top,
                             done.left - first.left, done.right - first.left)  # fmt: skip
                put_pixels(array, place, _pixels(model, header, done, latents))
                _report(len(wanted) - len(waiting), len(wanted))


def _latents(model: Model, header: Header, tile: Tile, data: bytes, device: torch.device) -> Tensor:
    """y of a tile in the synthesis transform's units, (M, h, w) float32."""
    found = decode_symbols(model, header, tile, data, device)
    steps = torch.from_numpy(found.steps).to(device)
    gain = model.inverse_gain(options.quality_of(header.quality_code)).to(device)
    y = scalar.dequantise(steps, found.priors.mean) * gain
    return y if found.priors.factor is None else y / found.priors.factor


def _pixels(model: Model, header: Header, tile: Tile, latents: Mapping[int, Tensor]) -> Tensor:
    """One tile's pixels (3, H, W), synthesised from its latents and a margin of its neighbours'."""
    h, w = latent_size(header.height), latent_size(header.width)
    step = header.tile // LATENT_STRIDE or max(h, w)
    around = tile.grown(min(model.arch.synthesis_margin, step), h, w)
    first = max(0, tile.row - 1)
    rows = [latents[r][:, :, around.left : around.right] for r in range(first, tile.row + 2) if r in latents]
    y = torch.cat(rows, dim=1)[:, around.top - first * step : around.bottom - first * step]
    y = y[None].contiguous(memory_format=torch.channels_last)
    network = model.synthesis(y.device, block_dtype(y.device))
    output: Tensor = network(y, _quality(header, y.device))[0]
    top, left = LATENT_STRIDE * (tile.top - around.top), LATENT_STRIDE * (tile.left - around.left)
    return output[:, top:, left:]


# -- shared --------------------------------------------------------------------------------


def _crop(y: Tensor, tile: Tile, around: Tile, scale: int = 1) -> Tensor:
    rows = slice(scale * (tile.top - around.top), scale * (tile.bottom - around.top))
    return y[:, :, rows, scale * (tile.left - around.left) : scale * (tile.right - around.left)]


def _quality(header: Header, device: torch.device) -> Tensor:
    return torch.tensor([options.quality_of(header.quality_code)], dtype=torch.float32, device=device)


def _report(done: int, total: int) -> None:
    callback = on_progress.get()
    if callback is not None:
        callback(done, total)
