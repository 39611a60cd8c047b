"""Our autoregressive decoder and CompressAI's ``mbt2018`` side by side, on one picture, in one run.

    pip install compressai  # in an environment of its own: it needs NumPy below 2
    python examples/against_compressai.py photo.png

CompressAI's weights are untrained, which changes nothing about how long its decoder takes for a
picture: it visits every latent position in a Python loop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from io import BytesIO
from statistics import median

import numpy as np
import torch
from PIL import Image

import pillow_lic
from pillow_lic import codec, container

pillow_lic.register_lic_opener()


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median of some runs."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def ours(image: Image.Image, quality: float, context: str) -> Callable[[], object]:
    """Decoding the picture as .lic."""
    out = BytesIO()
    image.save(out, "LIC", quality=quality, context=context)
    reader = container.Reader(BytesIO(out.getvalue()))
    reader.metadata()
    (frame,) = reader.frames()
    return lambda: codec.decode(reader.header, frame)


def theirs(image: Image.Image) -> Callable[[], object]:
    """Decoding the picture with CompressAI's joint autoregressive model."""
    from compressai.zoo import mbt2018

    torch.manual_seed(0)
    network = mbt2018(quality=4, pretrained=False).eval()
    network.update(force=True)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        coded = network.compress(pixels)

    def decode() -> object:
        with torch.inference_mode():
            return network.decompress(coded["strings"], coded["shape"])

    return decode


def main() -> None:
    """Print the times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--quality", type=float, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with Image.open(args.image) as opened:
        image = opened.convert("RGB")
    reference = seconds(theirs(image), 2)
    print(f"{'CompressAI mbt2018':<24}{1000 * reference:>10.1f} ms")
    for context in ("none", "staircase", "autoregressive"):
        work = ours(image, args.quality, context)
        work()  # weights are loaded, once
        found = seconds(work, 5)
        print(f"{'LIC, ' + context:<24}{1000 * found:>10.1f} ms, {reference / found:.0f} times faster")


if __name__ == "__main__":
    main()
