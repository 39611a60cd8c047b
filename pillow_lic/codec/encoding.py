"""Pixels and options to a coded file: analysis transform, hyperprior, quantiser, range coder, container."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pillow_lic import alpha, container, options
from pillow_lic.codec import families
from pillow_lic.codec.adaptation import chosen_levels, important_levels
from pillow_lic.codec.analysis import analysed
from pillow_lic.codec.common import contexts_to_try, in_silence, report, smallest
from pillow_lic.codec.decoding import decode
from pillow_lic.codec.searching import searched
from pillow_lic.codec.tiles import to_bytes
from pillow_lic.container import Coded, Frame
from pillow_lic.devices import choose_device, or_on_cpu, quiet
from pillow_lic.header import MAX_FRAMES, MAX_QUALITY_CODE, MAX_SIDE, Animation, Header, fits_one_tile
from pillow_lic.inputs import check_pixels
from pillow_lic.models.compressai.family import Family
from pillow_lic.models.finding import is_shipped
from pillow_lic.models.loading import AnyModel, Model, OneQuality, load_model
from pillow_lic.models.transforms import LATENT_STRIDE
from pillow_lic.options import EncoderOptions
from pillow_lic.pixels import Pixels, default_tile, latent_size, psnr
from pillow_lic.quantizers import adaptive
from pillow_lic.scans import scans_for
from pillow_lic.search.hyper import HYPER_STEPS
from pillow_lic.search.refine import STEPS
from pillow_lic.search.target import largest, largest_of_few


class Encoder(Protocol):
    """Makes a file at a quality code; quickly, one that tells about how large and how good it would be."""

    def __call__(self, code: int, *, quickly: bool = False) -> bytes:  # noqa: D102
        ...


class Attempt(Protocol):
    """Makes a file, at the code of that number, and tells what counts of it."""

    def __call__(self, number: int, /, *, quickly: bool = False) -> tuple[bytes, float]:  # noqa: D102
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
    family = load_model(opts.model_name)
    if isinstance(family, Family):
        families.check(family, opts, roi)
    header = header_for(
        family, opts, width, height, mode, len(pictures), adaptive=roi is not None or bool(opts.adaptive)
    )
    if roi is not None and (roi.dtype != np.uint8 or roi.shape != (height, width)):
        raise ValueError(f"roi must be an 8-bit grey picture of {width}x{height} pixels")
    if len(pictures) > 1 and animation is None:
        animation = Animation(0, (0,) * len(pictures))
    coded = [split_alpha(p, opts) if header.has_alpha else (p, None) for p in pictures]
    masked = None if roi is None else adaptive.levels_of(roi, latent_size(height), latent_size(width))
    contexts = contexts_to_try(family, opts.context)
    if opts.adaptive == "importance" and isinstance(family, Model):
        family.importance(torch.device("cpu"))  # a clear error before any work

    def at(device: torch.device, code: int, *, quickly: bool = False) -> bytes:
        model, code = family.at_quality(code)
        there, names, search = replace(header, quality_code=code), contexts, opts.search
        levels = [masked] * len(coded)
        if quickly:
            names, search = ["none"] if isinstance(model, Model) else contexts, (0, None)
            there = replace(there, adaptive=roi is not None)
        elif opts.adaptive and isinstance(model, Model):
            choose = important_levels if opts.adaptive == "importance" else chosen_levels
            levels = [adaptive.together(choose(model, x, there, device), masked) for x, _ in coded]
        best, found = _encode(model, coded, there, levels, names, search, device)
        return container.write(replace(there, context=best), metadata or {}, found, animation)

    def on(device: torch.device) -> bytes:
        with quiet(device, opts.threads):
            if opts.target is None:
                return at(device, opts.quality_code)
            kind, wanted = opts.target
            codes = [stop.code for stop in family.stops] if isinstance(family, Family) else range(MAX_QUALITY_CODE + 1)
            if kind == "target_psnr":
                return _at_psnr(coded, partial(at, device), codes, wanted, opts, device)
            return _at_size(partial(at, device), codes, kind, wanted, width * height * len(pictures))

    return or_on_cpu(choose_device(opts.device, width * height), on)


def header_for(
    family: AnyModel,
    opts: EncoderOptions,
    width: int,
    height: int,
    mode: str,
    frames: int = 1,
    *,
    adaptive: bool = False,
) -> Header:
    """The header of a file at the options' quality, whose context model is chosen later; ``ValueError`` as for
    :func:`encode`.
    """
    if max(width, height) > MAX_SIDE or frames > MAX_FRAMES:
        raise ValueError(f"LIC files have at most {MAX_SIDE} pixels a side and {MAX_FRAMES} frames")
    side = default_tile(width, height) if opts.tile is None else opts.tile
    reach = LATENT_STRIDE * family.at_quality(opts.quality_code)[0].arch.synthesis_margin
    if 0 < side < reach:
        raise ValueError(f"tile must be at least {reach} for this model, whose pixels depend on latents so far away")
    if not side and not fits_one_tile(width, height):
        raise ValueError(f"a picture of {width}x{height} pixels is too large for one tile; leave tile out")
    return Header(
        width, height, mode, family.identity, opts.quality_code, "none", _quantizer(family, opts), side, frames,
        adaptive=adaptive, progressive=opts.progressive,
        model_name="" if is_shipped(family.path) else family.path.stem.encode(errors="replace").decode(),
    )  # fmt: skip


def split_alpha(array: Pixels, opts: EncoderOptions) -> tuple[Pixels, bytes]:
    """Colours as they are coded, and coded transparency, of (H, W, 2 or 4) pixels."""
    colour, transparency = array[:, :, :-1], alpha.reduced(array[:, :, -1], opts.alpha_quality)
    if colour.shape[2] == 1:
        colour = colour[:, :, 0]
    shown = colour if opts.exact else alpha.hide_transparent(colour, transparency)
    return shown, alpha.pack(transparency)


def _encode(
    model: OneQuality,
    pictures: Sequence[tuple[Pixels, bytes | None]],
    header: Header,
    levels: Sequence[adaptive.Levels | None],
    contexts: Sequence[str],
    search: tuple[int, str | None],
    device: torch.device,
) -> tuple[str, list[Frame]]:
    """The context model that makes the frames smallest, and the frames coded with it."""
    frames: list[dict[str, list[Coded]]] = []
    units = 1 + STEPS[search[0]] + HYPER_STEPS[search[0]]
    total = header.frames * header.tiles * units
    done = 0
    for (array, _), own in zip(pictures, levels, strict=True):
        tiles: dict[str, list[Coded]] = {name: [] for name in contexts}
        scans = 0
        for part in analysed(model, array, header, device, own, searching=units > 1):
            tile = part.coded
            if units > 1 and isinstance(model, Model):
                tile = searched(model, part, header, contexts, search, (done, total))
            if header.progressive and not scans and isinstance(model, Model):
                scans = scans_for(model, tile, contexts[-1])
            for name in contexts:
                tiles[name].append(to_bytes(model, tile, name, header, scans))
            done += units
            report(done, total)
        frames.append(tiles)
    return smallest(frames, [packed for _, packed in pictures])


def _at_size(at: Encoder, codes: Sequence[int], kind: str, wanted: float, pixels: int) -> bytes:
    """The best file of at most a wanted size, in bytes or in bits a pixel (of all frames)."""
    unit = 8 / pixels if kind == "target_bpp" else 1.0
    sizes = {}

    def attempt(number: int, *, quickly: bool = False) -> tuple[bytes, float]:
        data = at(codes[number], quickly=quickly)
        sizes[number] = len(data) * unit
        return data, math.log(sizes[number])

    found = _largest(math.log(wanted), codes, attempt)
    if found is None:  # the last attempt was the smallest
        least = f"{sizes[0]:g} at quality {options.quality_of(codes[0]):g}"
        raise ValueError(f"{kind} {wanted:g} is out of reach: this picture takes {least}")
    return found


def _visible(pictures: Sequence[tuple[Pixels, bytes | None]], *, everywhere: bool) -> NDArray[np.bool_]:
    """Where anybody sees the frames' colours, (n, H, W); everywhere if nowhere."""
    masks = []
    for colour, packed in pictures:
        height, width = colour.shape[:2]
        if packed is None or everywhere:
            masks.append(np.ones((height, width), bool))
        else:
            masks.append(alpha.unpack(packed, width, height) > 0)
    seen = np.stack(masks)
    return seen if seen.any() else ~seen


def _at_psnr(
    pictures: Sequence[tuple[Pixels, bytes | None]],
    at: Encoder,
    codes: Sequence[int],
    wanted: float,
    opts: EncoderOptions,
    device: torch.device,
) -> bytes:
    """The smallest file of at least a wanted PSNR in dB, over all frames, of colours that are seen."""
    seen = _visible(pictures, everywhere=opts.exact)
    original = np.stack([colour for colour, _ in pictures])[seen]
    reached = {}

    def attempt(below: int, *, quickly: bool = False) -> tuple[bytes, float]:
        data = at(codes[-1 - below], quickly=quickly)
        reader = container.Reader(io.BytesIO(data))
        reader.metadata()
        with in_silence():
            shown = [
                decode(reader.header, replace(frame, alpha=None), str(device), threads=opts.threads)
                for frame in reader.frames()
            ]
        reached[below] = min(100.0, psnr(original, np.stack(shown)[seen]))
        return data, -reached[below]

    found = _largest(-wanted, codes, attempt)
    if found is None:  # the last attempt was the best
        most = f"{reached[0]:.2f} dB at quality {options.quality_of(codes[-1]):g}"
        raise ValueError(f"target_psnr {wanted:g} is out of reach: this picture has {most}")
    return found


def _largest(wanted: float, codes: Sequence[int], attempt: Attempt) -> bytes | None:
    """What the highest code gives whose value is at most a wanted one."""
    if len(codes) <= MAX_QUALITY_CODE:
        return largest_of_few(wanted, len(codes) - 1, attempt)
    return largest(wanted, len(codes) - 1, lambda code: attempt(code, quickly=True)[1], attempt)


def _quantizer(model: AnyModel, opts: EncoderOptions) -> str:
    """The quantiser asked for, or the best that the model has."""
    if isinstance(model, Family):
        return "scalar"
    if opts.quantizer is None:
        return options.DEFAULT_LATTICE if model.has_lattice else "scalar"
    if opts.quantizer != "scalar":
        model.lattice_index  # noqa: B018  (a clear error before any work)
    return opts.quantizer
