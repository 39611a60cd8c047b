"""What encoder and decoder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from pillow_lic import options
from pillow_lic.codec import families
from pillow_lic.container import Coded, Frame
from pillow_lic.models.compressai.family import Family
from pillow_lic.models.loading import AnyModel
from pillow_lic.pixels import Tile

on_progress: ContextVar[Callable[[int, int], None] | None] = ContextVar("on_progress", default=None)
"""Called with the work done and all there is: tiles, and steps of the encoder's search."""


def crop(y: Tensor, tile: Tile, around: Tile, scale: int = 1) -> Tensor:
    """What belongs to a tile of (1, C, H, W) that holds all ``around`` it; ``scale`` numbers a latent position."""
    rows = slice(scale * (tile.top - around.top), scale * (tile.bottom - around.top))
    return y[:, :, rows, scale * (tile.left - around.left) : scale * (tile.right - around.left)]


@contextmanager
def reporting_to(callback: Callable[[int, int], None] | None) -> Iterator[None]:
    """Call a function with the work done and all there is while coding; None changes nothing.

    Raises ``TypeError`` if it is no function.
    """
    if callback is not None and not callable(callback):
        raise TypeError(f"progress must be a function of two numbers, not {type(callback).__name__}")
    token = on_progress.set(on_progress.get() if callback is None else callback)
    try:
        yield
    finally:
        on_progress.reset(token)


@contextmanager
def in_silence() -> Iterator[None]:
    """Report nothing of some work."""
    token = on_progress.set(None)
    try:
        yield
    finally:
        on_progress.reset(token)


def report(done: int, total: int) -> None:
    """Tell whoever listens how far the work has come."""
    callback = on_progress.get()
    if callback is not None:
        callback(done, total)


def contexts_to_try(model: AnyModel, wanted: str | None) -> list[str]:
    """The context models to code with, of which the smallest result is kept."""
    if isinstance(model, Family):
        return [families.context(model, wanted)]
    if wanted == "auto":
        return ["none", *(name for name in options.FAST_CONTEXTS if name in model.contexts)]
    if wanted is None:
        wanted = options.DEFAULT_CONTEXT if options.DEFAULT_CONTEXT in model.contexts else "none"
    if wanted != "none":
        model.context(wanted, torch.device("cpu"))  # a clear error before any work
    return [wanted]


def smallest(
    frames: Sequence[Mapping[str, Sequence[Coded]]], transparency: Sequence[bytes | None]
) -> tuple[str, list[Frame]]:
    """The context model whose tiles, by frame, have the fewest bytes, and the frames coded with it."""
    best = min(frames[0], key=lambda name: sum(len(tile) for tiles in frames for tile in tiles[name]))
    return best, [Frame(tiles[best], packed) for tiles, packed in zip(frames, transparency, strict=True)]
