"""Convert pictures with Ray Data, and read .lic files into a Ray dataset.

    pip install "ray[data]"
    python examples/ray_data.py photos/ lic/

On a cluster, give paths that all machines see (s3://bucket/photos).  Each actor loads the weights once.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import ray
from PIL import Image

import pillow_lic
from pillow_lic.batch.files import locate, write


class Encoder:
    """Codes a batch of files; one actor a core."""

    def __init__(self, folder: str, quality: float) -> None:
        pillow_lic.register_lic_opener(device="cpu", threads=1)
        self.folder, self.quality = folder, quality

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Code and write some files; their new paths and sizes."""
        targets, sizes = [], []
        for path, data in zip(batch["path"], batch["bytes"], strict=True):
            with Image.open(BytesIO(data)) as image:
                (coded,) = pillow_lic.encode_batch([image], quality=self.quality)
            target = locate(f"{self.folder}/{PurePosixPath(path).with_suffix('.lic').name}")
            write(target, coded, target.folder)
            targets.append(str(target))
            sizes.append(len(coded))
        return {"path": np.array(targets), "size": np.array(sizes)}


def decode(batch: dict[str, Any]) -> dict[str, Any]:
    """Pixels of a batch of files, resized to one shape."""
    images = pillow_lic.decode_batch(list(batch["bytes"]), device="cpu")
    return {"image": np.stack([np.asarray(image.convert("RGB").resize((64, 64))) for image in images])}


def main() -> None:
    """Convert a folder, then read what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--actors", type=int, default=1, help="one core each; reading needs one as well")
    parser.add_argument("--quality", type=float, default=4)
    args = parser.parse_args()
    files = ray.data.read_binary_files(args.source, include_paths=True)
    actors = ray.data.ActorPoolStrategy(size=args.actors)
    settings = {"folder": args.target, "quality": args.quality}
    done = files.map_batches(Encoder, fn_constructor_kwargs=settings, batch_size=8, compute=actors).take_all()
    print(f"{len(done)} files, {sum(row['size'] for row in done)} bytes")
    pictures = ray.data.read_binary_files(args.target).map_batches(decode, batch_size=8).take_all()
    print(f"{len(pictures)} pictures, mean brightness {np.mean([row['image'].mean() for row in pictures]):.1f}")


if __name__ == "__main__":
    main()
