"""Ways to spend the same bytes on a folder of images: plain files against those of other save options.

    python examples/where_bits_go.py FOLDER --quality 4 --try '{"adaptive": true}'

Each image is saved with plain options at a quality, and with the others in at most as many bytes.  Printed are the
mean SSIM of the worst 5 % of 8x8 blocks (luma, Gaussian window of 11), PSNR and MS-SSIM, and what they change by.
"""

from __future__ import annotations

import argparse
import json
from io import BytesIO
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

import pillow_lic
from pillow_lic.bench.measure import centre
from pillow_lic.bench.metrics import decibel, ms_ssim, psnr
from pillow_lic.distortions import ssim_map
from pillow_lic.pictures import image_files, load_rgb

pillow_lic.register_lic_opener()


def worst(shown: np.ndarray, original: np.ndarray) -> float:
    """Mean SSIM of the worst 5 % of 8x8 blocks, on luma."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    one, other = ((torch.from_numpy(np.array(x)).float() @ weights)[None, None] - 127.5 for x in (shown, original))
    blocks = torch.nn.functional.avg_pool2d(ssim_map(one, other), 8).flatten().sort().values
    return float(blocks[: max(1, round(0.05 * blocks.numel()))].mean())


def measured(original: np.ndarray, **options: Any) -> tuple[int, float, float, float]:
    """Bytes, SSIM of the worst blocks, PSNR in dB, MS-SSIM in dB of a file."""
    out = BytesIO()
    Image.fromarray(original).save(out, "LIC", **options)
    with Image.open(out) as image:
        shown = np.asarray(image)
    return out.tell(), worst(shown, original), psnr(original, shown), decibel(ms_ssim(original, shown))


def main() -> None:
    """Print a line for each image, then the means and how many images gained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--quality", type=float, default=4)
    parser.add_argument("--both", type=json.loads, default={}, help="save options of plain files and the others, JSON")
    parser.add_argument("--try", dest="options", type=json.loads, required=True, help="what the others add, JSON")
    parser.add_argument("--crop", type=int, help="the middle so many pixels square only")
    parser.add_argument("--from", dest="first", type=int, default=0, help="images to pass over")
    parser.add_argument("--count", type=int, help="images to take")
    args = parser.parse_args()
    files = image_files(args.folder)[args.first :][: args.count]
    changes = []
    print("image                bytes        worst 5 %         PSNR, dB          MS-SSIM, dB")
    for file in files:
        original = load_rgb(file)
        if args.crop:
            original = np.ascontiguousarray(centre(original, args.crop))
        size, *plain = measured(original, quality=args.quality, **args.both)
        other_size, *other = measured(original, target_size=size, **args.both, **args.options)
        changes.append([100 * (other_size / size - 1), *(b - a for a, b in zip(plain, other, strict=True))])
        figures = "".join(f"{a:9.4f} {b - a:+8.4f}" for a, b in zip(plain, other, strict=True))
        print(f"{file.stem:<16}{size:>8} {changes[-1][0]:+6.2f} %{figures}", flush=True)
    mean = [fmean(column) for column in zip(*changes, strict=True)]
    gained = [sum(c > 0 for c in column) for column in zip(*changes, strict=True)]
    print(f"mean: bytes {mean[0]:+.2f} %, worst {mean[1]:+.4f}, PSNR {mean[2]:+.3f} dB, MS-SSIM {mean[3]:+.3f} dB")
    print(f"gained, of {len(changes)}: worst {gained[1]}, PSNR {gained[2]}, MS-SSIM {gained[3]}")


if __name__ == "__main__":
    main()
