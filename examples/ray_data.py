"""Convert pictures with Ray Data, and read .lic files into a Ray dataset.

    pip install "ray[data]"
    python examples/ray_data.py photos/ lic/

On a cluster, give paths that all machines see (s3://bucket/photos).  Each actor loads the weights once.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np
import ray

import pillow_lic
from pillow_lic.batch.files import locate, write
from pillow_lic.batch.plan import Settings, readable
from pillow_lic.batch.worker import transform
from pillow_lic.options import EncoderOptions


class Encoder:
    """Codes a batch of files as ``lic convert`` does, metadata and films too; one actor a core."""

    def __init__(self, source: str, folder: str, quality: float) -> None:
        self.source, self.folder = locate(source).path, folder
        options = EncoderOptions(quality=quality, device="cpu", threads=1)
        self.settings = Settings(".lic", options, locate(folder))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Code and write some files, each to its place in the tree; their new paths and sizes."""
        targets, sizes = [], []
        for path, data in zip(batch["path"], batch["bytes"], strict=True):
            coded = transform(data, self.settings)[0]
            # With its extension, so that a.jpg and a.png do not meet.
            place = os.path.relpath(locate(path).path, self.source)
            target = locate(f"{self.folder}/{place}.lic")
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
    pictures = sorted(extension[1:] for extension in readable())
    files = ray.data.read_binary_files(args.source, include_paths=True, file_extensions=pictures)
    actors = ray.data.ActorPoolStrategy(size=args.actors)
    settings = {"source": args.source, "folder": args.target, "quality": args.quality}
    done = files.map_batches(Encoder, fn_constructor_kwargs=settings, batch_size=8, compute=actors).take_all()
    print(f"{len(done)} files, {sum(row['size'] for row in done)} bytes")
    coded = ray.data.read_binary_files(args.target, file_extensions=["lic"])
    rows = coded.map_batches(decode, batch_size=8).take_all()
    print(f"{len(rows)} pictures, mean brightness {np.mean([row['image'].mean() for row in rows]):.1f}")


if __name__ == "__main__":
    main()
