"""What a benchmark run leaves behind: a BD-rate table, JSON files and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pillow_lic.bench.codecs import Codec
from pillow_lic.bench.measure import Measurement, Point, mean_points
from pillow_lic.bench.metrics import bd_rate, decibel

Curve = list[tuple[float, float]]

PUBLISHED = {
    "vtm.json": "VTM",
    "hm.json": "HM",
    "compressai-bmshj2018-hyperprior_mse_cuda.json": "bmshj2018-hyperprior (CompressAI)",
    "compressai-mbt2018-mean_mse_cuda.json": "mbt2018-mean (CompressAI)",
    "compressai-mbt2018_mse_cuda.json": "mbt2018 (CompressAI)",
    "compressai-cheng2020-anchor_mse_cuda.json": "cheng2020-anchor (CompressAI)",
    "paper-elic2022_mse.json": "ELIC (paper)",
}
"""Codecs made for squared error, by file."""

PUBLISHED_FOR_MS_SSIM = {
    f"compressai-{name}_ms-ssim_cuda.json": f"{name} for MS-SSIM (CompressAI)"
    for name in ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-anchor")
}
"""Codecs that were trained for MS-SSIM, likewise."""


def psnr_curve(points: Sequence[Point]) -> Curve:
    """(bpp, PSNR) of a codec."""
    return [(p.bpp, p.psnr) for p in points]


def ms_ssim_curve(points: Sequence[Point]) -> Curve:
    """(bpp, MS-SSIM in dB) of a codec."""
    return [(p.bpp, decibel(p.ms_ssim)) for p in points if not math.isnan(p.ms_ssim)]


def published_curves(folder: Path) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Curves of other codecs in CompressAI's layout, by name: PSNR, of those made for it, and MS-SSIM in dB."""
    psnr: dict[str, Curve] = {}
    similarity: dict[str, Curve] = {}
    for file, name in (PUBLISHED | PUBLISHED_FOR_MS_SSIM).items():
        path = folder / file
        if path.is_file():
            results = json.loads(path.read_text(encoding="utf-8"))["results"]
            if file in PUBLISHED:
                psnr[name] = list(zip(results["bpp"], results.get("psnr-rgb", results.get("psnr")), strict=True))
            if values := results.get("ms-ssim-rgb"):
                similarity[name] = list(zip(results["bpp"], map(decibel, values), strict=True))
    return psnr, similarity


def bd_table(test: Curve, anchors: Mapping[str, Curve]) -> dict[str, float]:
    """BD-rate in % of a curve against each anchor."""
    return {name: bd_rate(anchor, test) for name, anchor in anchors.items() if len(anchor) > 3}


def per_image_bd(measurements: Sequence[Measurement], anchor: str) -> dict[str, float]:
    """BD-rate on PSNR of LIC against a codec, image by image."""
    found = {}
    for image in sorted({m.image for m in measurements}):
        curves = [
            [(m.bpp, m.psnr) for m in measurements if m.image == image and m.codec == name] for name in (anchor, "LIC")
        ]
        found[image] = bd_rate(curves[0], curves[1])
    return found


def points_text(codec: Codec, points: Sequence[Point]) -> str:
    """A codec's curve as lines of text."""
    lines = [f"{codec.describe()}", f"{codec.vary:>14}     bpp  PSNR dB  MS-SSIM  encode ms  decode ms"]
    lines += [
        f"{p.setting:>14g} {p.bpp:7.4f} {p.psnr:8.2f} {p.ms_ssim:8.4f} {1000 * p.encode:10.1f} {1000 * p.decode:10.1f}"
        for p in points
    ]
    return "\n".join(lines)


def bd_text(test: str, psnr: Mapping[str, float], similarity: Mapping[str, float]) -> str:
    """The BD-rate table as lines of text."""
    width = max(map(len, ["against", *psnr, *similarity]))
    lines = [f"BD-rate of {test}, %", f"{'against':<{width}}     PSNR  MS-SSIM"]
    for name in {**psnr, **similarity}:
        values = (f"{found[name]:+8.1f}" if name in found else "       -" for found in (psnr, similarity))
        lines.append(f"{name:<{width}} {' '.join(values)}")
    return "\n".join(lines)


def write_json(folder: Path, codecs: Sequence[Codec], measurements: Sequence[Measurement]) -> None:
    """One file for each codec in CompressAI's result layout, and one with every measurement."""
    folder.mkdir(parents=True, exist_ok=True)
    for codec in codecs:
        points = mean_points(measurements, codec)
        results = {
            "q": [p.setting for p in points],
            "bpp": [p.bpp for p in points],
            "psnr-rgb": [_or_null(p.psnr) for p in points],
            "ms-ssim-rgb": [_or_null(p.ms_ssim) for p in points],
            "encoding_time": [p.encode for p in points],
            "decoding_time": [p.decode for p in points],
        }
        value = {"name": codec.name, "description": codec.describe(), "results": results}
        name = codec.name.lower().replace(" ", "").replace(",", "-")
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    every = [asdict(m) | {"psnr": _or_null(m.psnr), "ms_ssim": _or_null(m.ms_ssim)} for m in measurements]
    (folder / "measurements.json").write_text(json.dumps(every, indent=0) + "\n", encoding="utf-8")


def _or_null(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def write_plot(path: Path, curves: Mapping[str, Curve], unit: str, title: str) -> None:
    """A rate-distortion plot; the first curve is drawn heavily."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6.5))
    colours = pyplot.get_cmap("tab20")(range(20))
    axes.set_prop_cycle(color=["black", *colours[::2], *colours[1::2]])
    for n, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = (
            {"linewidth": 2.6, "marker": "o", "zorder": 3} if n == 0 else {"linewidth": 1.2, "marker": "."}
        )
        axes.plot(*zip(*sorted(curve), strict=True), label=name, **style)
    axes.set(xlabel="bits per pixel", ylabel=unit, title=title, xlim=(0, 2.5))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
