"""LIC against itself: context models, quantisers and effort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pillow_lic.bench.codecs import LIC, Codec
from pillow_lic.bench.measure import Measurement, mean_points
from pillow_lic.bench.metrics import bd_rate
from pillow_lic.options import EncoderOptions

HIGH = 3.0
"""Where the qualities begin that are reported by themselves."""


@dataclass(frozen=True)
class Variant:
    """A variant's BD-rate on PSNR against the first one in %, over all qualities and from ``HIGH`` up, and
    its times in seconds for a million pixels (medians).
    """

    name: str
    bd_rate: float
    bd_rate_high: float
    encode: float
    decode: float


def codec_of(text: str, qualities: Sequence[float]) -> Codec:
    """LIC with "CONTEXT/QUANTIZER:EFFORT", of which context and effort may be left out; ``ValueError`` if there is
    none such.
    """
    rest, _, effort = text.partition(":")
    context, _, quantizer = rest.rpartition("/")
    if effort and not effort.isdecimal():
        raise ValueError(f"a variant is CONTEXT/QUANTIZER:EFFORT, not {text!r}")
    fixed: dict[str, str | int] = {"quantizer": quantizer, "effort": int(effort or 0)}
    if context:
        fixed["context"] = context
    EncoderOptions(**fixed)  # type: ignore[arg-type]
    name = ", ".join([*filter(None, (context, quantizer)), f"effort {fixed['effort']}"])
    return Codec(name, LIC.format, LIC.vary, tuple(qualities), fixed)


def compare(measurements: Sequence[Measurement], codecs: Sequence[Codec]) -> list[Variant]:
    """Every variant against the first."""
    points = {c.name: mean_points(measurements, c) for c in codecs}
    curves = {name: [(p.setting, (p.bpp, p.psnr)) for p in found] for name, found in points.items()}
    anchor = curves[codecs[0].name]
    found = []
    for name, curve in curves.items():
        rates = [
            bd_rate([at for q, at in anchor if q >= low], [at for q, at in curve if q >= low]) for low in (0.0, HIGH)
        ]
        mine = [m for m in measurements if m.codec == name]
        times = [median(getattr(m, kind) / m.pixels * 1e6 for m in mine) for kind in ("encode", "decode")]
        found.append(Variant(name, *rates, *times))
    return found


def text(variants: Sequence[Variant]) -> str:
    """A table, with times against the first variant's."""
    lines = [f"{'BD-rate on PSNR, %':<28}    all  from {HIGH:g}  encode s/MP   ratio  decode s/MP   ratio"]
    base = variants[0]
    lines += [
        f"{v.name:<28}{v.bd_rate:>+7.2f}{v.bd_rate_high:>+8.2f}{v.encode:>13.2f}{v.encode / base.encode:>8.2f}"
        f"{v.decode:>13.3f}{v.decode / base.decode:>8.2f}"
        for v in variants
    ]
    return "\n".join(lines)
