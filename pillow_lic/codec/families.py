"""What options mean for families of published codecs, which have one way of coding their latents."""

from __future__ import annotations

from dataclasses import fields

from pillow_lic.models.compressai.family import Family
from pillow_lic.options import TARGETS, EncoderOptions
from pillow_lic.pixels import Pixels

_KNOWN = {"quality", *TARGETS, "context", "quantizer", "model", "device", "threads", "tile", "alpha_quality", "exact"}


def check(family: Family, opts: EncoderOptions, roi: Pixels | None) -> None:
    """Raise ``ValueError`` for what a published codec knows nothing of."""
    if opts.quantizer not in (None, "scalar"):
        raise ValueError(f"the model {family.name!r} has no quantizer {opts.quantizer!r}; it has 'scalar'")
    given = [f.name for f in fields(opts) if f.name not in _KNOWN and getattr(opts, f.name) != f.default]
    for option in given if roi is None else [*given, "roi"]:
        raise ValueError(f"the model {family.name!r} has no {option}: it is one of the published codecs")


def context(family: Family, wanted: str | None) -> str:
    """The only way that a family's latents are coded; ``ValueError`` if another is asked for."""
    (own,) = family.contexts
    if wanted not in (None, "auto", own):
        raise ValueError(f"the model {family.name!r} has no context {wanted!r}; it has {own!r}")
    return own
