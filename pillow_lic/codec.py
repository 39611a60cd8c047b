"""From pixels and options to a coded file and back: the only module that knows every stage.

Saving: analysis transform, hyperprior, quantiser, range coder, container.  Opening: the same
backwards.  Only the symbols and what decides their probabilities need to be exact; the synthesis
transform is ordinary floating point.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic import container, options
from pillow_lic.container import Header
from pillow_lic.entropy.coder import LIMIT, Indices, SymbolDecoder, SymbolEncoder, Symbols
from pillow_lic.entropy.context import ExactContext
from pillow_lic.models.hyperprior import HYPER_STRIDE
from pillow_lic.models.loading import Model, load_model, model_by_identity
from pillow_lic.models.transforms import LATENT_STRIDE
from pillow_lic.options import EncoderOptions
from pillow_lic.pixels import (
    Pixels,
    Tile,
    check_pixels,
    default_tile,
    latent_size,
    pad_to_multiple,
    put_pixels,
    tile_pixels,
    tiles_of,
)
from pillow_lic.quantizers import scalar

on_tile: ContextVar[Callable[[int, int], None] | None] = ContextVar("on_tile", default=None)
"""Called with the tiles done and their number after each tile, by whoever wants to show progress."""

WORTH_CUDA = 256 * 256
"""Pixels from which a transfer to the GPU pays."""


@dataclass(frozen=True)
class Priors:
    """What h_s says of y: means (64ths of a step) and table indices, (M, h, w) each, and its last
    hidden layer (hyper_channels, h, w), all integers."""

    mean: Tensor
    index: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class CodedTile:
    """A tile's symbols of z (N, h, w) and y (M, h, w), and what is known of y's before it is read."""

    z: Symbols
    z_index: Indices
    y: Symbols
    priors: Priors


def encode(array: Pixels, opts: EncoderOptions, metadata: Mapping[str, bytes] | None = None) -> bytes:
    """Code (H, W) or (H, W, 3) uint8 pixels as a LIC file.

    Raises ``TypeError`` and ``ValueError`` for pixels that LIC does not take and for models that
    are not installed.
    """
    mode = check_pixels(array)
    height, width = array.shape[:2]
    model = load_model(opts.model_name)
    side = default_tile(width, height) if opts.tile is None else opts.tile
    if not side and not container.fits_one_tile(width, height):
        raise ValueError(f"a picture of {width}x{height} pixels is too large for one tile; leave tile out")
    contexts = _contexts(model, opts.context)
    header = Header(width, height, mode, model.identity, opts.quality_code, contexts[0], opts.quantizer, side)
    device = choose_device(opts.device, width * height)
    with _quiet(device):
        tiles: dict[str, list[bytes]] = {name: [] for name in contexts}
        for done, tile in enumerate(analyse(model, array, header, device), start=1):
            for name in contexts:
                tiles[name].append(_pack(model, tile, name, header.quality_code))
            _report(done, header)
    best = min(contexts, key=lambda name: sum(map(len, tiles[name])))
    return container.write(replace(header, context=best), metadata or {}, [tiles[best]])


def decode(header: Header, tiles: Sequence[bytes], device: str | None = None) -> Pixels:
    """The pixels of a frame, (H, W) or (H, W, 3) uint8.

    Raises ``OSError`` if the data are damaged or their model is not installed.
    """
    model = model_by_identity(header.model_id)
    on = choose_device(device, header.width * header.height)
    shape = (header.height, header.width, 3)[: 3 if header.mode == "RGB" else 2]
    array = np.empty(shape, np.uint8)
    with _quiet(on):
        _synthesise(model, header, tiles, array, on)
    return array


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
    with _quiet(on):
        for coded in reader.frames():
            tiles: dict[str, list[bytes]] = {name: [] for name in contexts}
            for place, part in zip(tiles_of(header.width, header.height, header.tile), coded, strict=True):
                tile = decode_symbols(model, header, place, part, on)
                for name in contexts:
                    tiles[name].append(_pack(model, tile, name, header.quality_code))
                _report(len(tiles[contexts[0]]), header)
            frames.append(tiles)
    best = min(contexts, key=lambda name: sum(len(t) for f in frames for t in f[name]))
    return container.write(replace(header, context=best), metadata, [f[best] for f in frames])


# -- encoder -------------------------------------------------------------------------------


def analyse(model: Model, array: Pixels, header: Header, device: torch.device) -> Iterator[CodedTile]:
    """The symbols of each tile in turn."""
    w, h = latent_size(header.width), latent_size(header.height)
    analysis = model.analysis(device, block_dtype(device))
    quality = _quality(header, device)
    gain = model.gain(options.quality_of(header.quality_code)).to(device)
    for tile in tiles_of(header.width, header.height, header.tile):
        around = tile.grown(model.arch.analysis_margin, h, w)
        pixels = tile_pixels(array, around).to(device).contiguous(memory_format=torch.channels_last)
        y = _crop(analysis(pixels, quality), tile, around) * gain
        yield _quantise(model, y, header.quality_code, quality)


def _quantise(model: Model, y: Tensor, quality_code: int, quality: Tensor) -> CodedTile:
    """Symbols of z and y for latents (1, M, h, w) in steps."""
    device = y.device
    exact = model.hyper_synthesis(device)
    z_gain, z_mean, z_index = exact.z_prior(quality_code)
    z = model.hyper_analysis(device)(pad_to_multiple(y, HYPER_STRIDE), quality)[0].cpu().double().numpy()
    steps = z * (2.0**10 / z_gain)[:, None, None] - (z_mean / 2.0**6)[:, None, None]
    z_indices = _spread(z_index, z.shape)
    z_symbols = np.where(z_indices < model.tables.skip, 0, np.clip(np.rint(steps), -LIMIT, LIMIT)).astype(np.int16)
    priors = _priors(model, z_symbols, quality_code, y.shape[2:], device)
    symbols = scalar.quantise(y[0], priors.mean, priors.index, model.tables.skip)
    return CodedTile(z_symbols, z_indices, symbols.cpu().numpy().astype(np.int16), priors)


def _pack(model: Model, tile: CodedTile, context: str, quality_code: int) -> bytes:
    coder = SymbolEncoder()
    coder.encode(tile.z.ravel(), tile.z_index.ravel(), model.tables)
    index, hidden = tile.priors.index, tile.priors.hidden
    if context == "none":
        coder.encode(tile.y.ravel(), flat(index), model.tables)
    else:
        network = model.context(context, index.device)
        network.encode(coder, tile.y, index, hidden, quality_code, model.tables.skip)
    return struct.pack("<I", _checksum(tile)) + coder.finish()


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


def _synthesise(model: Model, header: Header, coded: Sequence[bytes], array: Pixels, device: torch.device) -> None:
    """Decode every tile's latents, and its pixels once the tiles around it are decoded too.

    Latents are kept for three rows of tiles at a time.
    """
    tiles = list(tiles_of(header.width, header.height, header.tile))
    h, w = latent_size(header.height), latent_size(header.width)
    latents: dict[int, Tensor] = {}
    done = 0
    for tile, data in zip(tiles, coded, strict=True):
        if tile.row not in latents:
            rows = (model.arch.latents, tile.bottom - tile.top, w)
            latents[tile.row] = torch.empty(rows, dtype=torch.float32, device=device)
            latents.pop(tile.row - 3, None)
        latents[tile.row][:, :, tile.left : tile.right] = _latents(model, header, tile, data, device)
        if tile.right == w:
            last = tile.bottom == h
            while done < len(tiles) and (last or tiles[done].row < tile.row):
                _put_tile(model, header, tiles[done], latents, array)
                done += 1
                _report(done, header)


def _latents(model: Model, header: Header, tile: Tile, data: bytes, device: torch.device) -> Tensor:
    """y of a tile in the synthesis transform's units, (M, h, w) float32."""
    found = decode_symbols(model, header, tile, data, device)
    symbols = torch.from_numpy(found.y).to(device)
    gain = model.inverse_gain(options.quality_of(header.quality_code)).to(device)
    return scalar.dequantise(symbols, found.priors.mean) * gain


def decode_symbols(model: Model, header: Header, tile: Tile, data: bytes, device: torch.device) -> CodedTile:
    """A tile's symbols; ``OSError`` if they fail its checksum."""
    if len(data) < 4:
        raise OSError("damaged LIC file: a tile is too short")
    size = (tile.bottom - tile.top, tile.right - tile.left)
    z_shape = (model.arch.hyperlatents, -(-size[0] // HYPER_STRIDE), -(-size[1] // HYPER_STRIDE))
    coder = SymbolDecoder(data[4:])
    z_index = _spread(model.hyper_synthesis(device).z_prior(header.quality_code)[2], z_shape)
    z = coder.decode(z_index.ravel(), model.tables).reshape(z_shape)
    priors = _priors(model, z, header.quality_code, size, device)
    if header.context == "none":
        y = coder.decode(flat(priors.index), model.tables).reshape(priors.index.shape)
    else:
        network = _context_to_decode(model, header.context, device)
        y = network.decode(coder, priors.index, priors.hidden, header.quality_code, model.tables.skip)
    found = CodedTile(z, z_index, y, priors)
    if struct.unpack_from("<I", data)[0] != _checksum(found):
        raise OSError("damaged LIC file: the decoded symbols fail their checksum")
    return found


def _context_to_decode(model: Model, name: str, device: torch.device) -> ExactContext:
    try:
        return model.context(name, device)
    except ValueError as error:
        raise OSError(str(error)) from error


def _put_tile(model: Model, header: Header, tile: Tile, latents: Mapping[int, Tensor], array: Pixels) -> None:
    """Synthesise one tile's pixels from its latents and a margin of its neighbours'."""
    h, w = latent_size(header.height), latent_size(header.width)
    step = header.tile // LATENT_STRIDE or max(h, w)
    around = tile.grown(min(model.arch.synthesis_margin, step), h, w)
    first = max(0, tile.row - 1)
    rows = [latents[r][:, :, around.left : around.right] for r in range(first, tile.row + 2) if r in latents]
    y = torch.cat(rows, dim=1)[:, around.top - first * step : around.bottom - first * step]
    y = y[None].contiguous(memory_format=torch.channels_last)
    network = model.synthesis(y.device, block_dtype(y.device))
    output = network(y, _quality(header, y.device))[0]
    top, left = LATENT_STRIDE * (tile.top - around.top), LATENT_STRIDE * (tile.left - around.left)
    put_pixels(array, tile, output[:, top:, left:])


# -- shared --------------------------------------------------------------------------------


def _priors(model: Model, z: Symbols, quality_code: int, size: Sequence[int], device: torch.device) -> Priors:
    """The same in the encoder and every decoder."""
    found = model.hyper_synthesis(device)(z, quality_code)
    return Priors(*(x[:, : size[0], : size[1]] for x in found))


def _spread(by_channel: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    return np.broadcast_to(by_channel[:, None, None], shape)


def flat(values: Tensor) -> NDArray[Any]:
    """A tensor's numbers as the range coder takes them."""
    return values.cpu().numpy().ravel()


def _checksum(tile: CodedTile) -> int:
    """CRC-32 of all that the latents are made of; the tables' indices need none, as symbols tell."""
    checksum = zlib.crc32(tile.z.astype("<i2").tobytes())
    checksum = zlib.crc32(tile.y.astype("<i2").tobytes(), checksum)
    return zlib.crc32(flat(tile.priors.mean).astype("<i4").tobytes(), checksum)


def _crop(y: Tensor, tile: Tile, around: Tile) -> Tensor:
    top, left = tile.top - around.top, tile.left - around.left
    return y[:, :, top : top + tile.bottom - tile.top, left : left + tile.right - tile.left]


def _quality(header: Header, device: torch.device) -> Tensor:
    return torch.tensor([options.quality_of(header.quality_code)], dtype=torch.float32, device=device)


def _report(done: int, header: Header) -> None:
    callback = on_tile.get()
    if callback is not None:
        callback(done, header.tiles)


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """No gradients and no autocast, whatever the caller has set."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def choose_device(name: str | None, pixels: int) -> torch.device:
    """The device to work on; ``ValueError`` if it does not exist."""
    name = name or options.defaults.device or os.environ.get("PILLOW_LIC_DEVICE") or None
    if name is None:
        # A forked child cannot use the CUDA of its parent, and nobody asked for it by name.
        usable = pixels >= WORTH_CUDA and torch.cuda.is_available() and not torch.cuda._is_in_bad_fork()
        return torch.device("cuda" if usable else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} does not exist here; this torch sees {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {name!r}")
    return device


@cache
def block_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32.

    PILLOW_LIC_PRECISION=float32 or bfloat16 decides otherwise.
    """
    wanted = os.environ.get("PILLOW_LIC_PRECISION")
    if wanted in ("float32", "bfloat16"):
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = known.get("avx512_bf16") or known.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32
