"""Our decoders and CompressAI's side by side, on the same weights and the same picture, in one run.

    make test-compressai  # makes an environment that has CompressAI, which needs NumPy below 2
    .venv-compressai/bin/python examples/against_compressai.py photo.png --architecture mbt2018

Without --checkpoint the weights are random and spread as trained ones spread latents and scales.  That
changes nothing about how CompressAI decodes the autoregressive models: position by position, in a Python loop.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import pillow_lic
from pillow_lic import codec, container
from pillow_lic.codec.tiles import from_bytes
from pillow_lic.models.compressai.networks import ARCHITECTURES
from pillow_lic.models.loading import model_by_identity
from pillow_lic.pixels import tiles_of
from pillow_lic.symbols import CodedTile
from pillow_lic.training.compressai import import_checkpoints

pillow_lic.register_lic_opener()


def seconds(work: Callable[[], object]) -> float:
    """How long it takes; on one thread in processor time, of which what runs beside it takes little."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    work()
    return clock() - started


def ours(image: Image.Image, **options: Any) -> tuple[Callable[[], object], Callable[[], CodedTile], int]:
    """Decoding the picture as .lic, decoding its symbols alone, and its size in bytes."""
    out = BytesIO()
    image.save(out, "LIC", tile=0, **options)
    reader = container.Reader(BytesIO(out.getvalue()))
    reader.metadata()
    (frame,) = reader.frames()
    model, _ = model_by_identity(reader.header.model_id).at_quality(reader.header.quality_code)
    (place,) = tiles_of(image.width, image.height, 0)

    def symbols() -> CodedTile:
        with torch.inference_mode():
            return from_bytes(model, reader.header, place, frame.tiles[0], torch.device("cpu"))

    return lambda: codec.decode(reader.header, frame), symbols, len(out.getvalue())


def network_of(architecture: str, quality: int, checkpoint: str | None) -> Any:
    """CompressAI's network of published size."""
    # Its torchvision needs help beside torch's CPU build.
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "published"))
    importlib.import_module("operators")
    from compressai.zoo import image as zoo

    if checkpoint is not None:
        state = torch.load(checkpoint, weights_only=True)
        return zoo.model_architectures[architecture].from_state_dict(state.get("state_dict", state)).eval()
    torch.manual_seed(0)
    network = zoo._load_model(architecture, "mse", quality, pretrained=False).eval()
    with torch.no_grad():
        network.g_a[-1].weight *= 20
        last = network.entropy_parameters if ARCHITECTURES[architecture].context else getattr(network, "h_s", None)
        if last is not None and ARCHITECTURES[architecture].means:
            bias = last[-1].bias
            bias[: len(bias) // 2] += torch.logspace(-1, 1, len(bias) // 2)
    return network


def theirs(network: Any, image: Image.Image) -> tuple[Callable[[], object], Callable[[], object], int]:
    """Decoding the picture with CompressAI, its synthesis alone, and its size in bytes."""
    network.update(force=True)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        coded = network.compress(pixels)

    def decode() -> object:
        with torch.inference_mode():
            return network.decompress(coded["strings"], coded["shape"])

    def synthesis() -> object:
        with torch.inference_mode():
            return network.g_s(torch.zeros(1, network.M, image.height // 16, image.width // 16))

    return decode, synthesis, sum(len(s) for strings in coded["strings"] for s in strings)


def compare(
    reference: tuple[Callable[[], object], Callable[[], object], int],
    variants: dict[str, tuple[Callable[[], object], Callable[[], CodedTile], int]],
    rounds: int,
) -> None:
    """Print the medians of some rounds in which all take turns, and those of the ratios."""
    decode, synthesis, size = reference
    theirs: list[Any] = []
    found: dict[str, list[Any]] = {name: [] for name in variants}
    for _ in range(rounds):
        whole = seconds(decode)
        theirs.append(np.array([whole, whole - seconds(synthesis)]))
        for name, (work, symbols, _) in variants.items():
            found[name].append(np.array([seconds(work), seconds(symbols)]))
    milliseconds = 1000 * np.median(theirs, axis=0)
    print(f"{torch.get_num_threads()} threads{'':<19}{'decoding':>12}{'without synthesis':>20}")
    print(f"{'CompressAI':<28}{milliseconds[0]:>9.0f} ms{milliseconds[1]:>17.0f} ms, {size} bytes")
    for name, times in found.items():
        milliseconds = 1000 * np.median(times, axis=0)
        ratios = np.median(np.array(theirs) / times, axis=0)
        print(f"{name:<28}{milliseconds[0]:>9.0f} ms{milliseconds[1]:>17.0f} ms, {variants[name][2]} bytes, "
              f"{ratios[0]:.1f} and {ratios[1]:.1f} times faster")  # fmt: skip


def main() -> None:
    """Print the times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES), default="mbt2018")
    parser.add_argument("--quality", type=int, default=4, help="which of the published sizes")
    parser.add_argument("--checkpoint", help="weights, instead of random ones")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with Image.open(args.image) as opened:
        image = opened.convert("RGB")
        image = image.crop((0, 0, image.width // 64 * 64, image.height // 64 * 64))  # CompressAI pads nothing
    network = network_of(args.architecture, args.quality, args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / f"{args.architecture}.safetensors"
        torch.save(network.state_dict(), model.with_suffix(".pth"))
        (made,) = import_checkpoints([f"{args.quality}={model.with_suffix('.pth')}"], args.architecture, model)
        print(f"{args.architecture}, {made.channels} channels, {made.latents} latents, {image.width}x{image.height}")
        reference = theirs(network, image)
        variants = {
            f"LIC, {args.architecture}": ours(image, model=model),
            "LIC, mse, autoregressive": ours(image, context="autoregressive"),
            "LIC, mse, staircase": ours(image, context="staircase"),
        }
        seen: dict[str, CodedTile] = {}
        for threads in args.threads:
            torch.set_num_threads(threads)
            for name, (work, symbols, _) in variants.items():
                work()  # weights are loaded, once
                tile = symbols()
                first = seen.setdefault(name, tile)
                if not (np.array_equal(tile.y, first.y) and np.array_equal(tile.z, first.z)):
                    sys.exit(f"{name}: other symbols with {threads} threads")
            compare(reference, variants, args.rounds)
        print(f"The symbols are the same with {' and '.join(map(str, args.threads))} threads.")


if __name__ == "__main__":
    main()
