"""Train from a folder of .lic files: a Dataset whose worker processes decode straight to tensors.

python examples/dataset.py photos/ --workers 2 --start spawn
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import pillow_lic


class Photos(Dataset[Tensor]):
    """Random crops (3, size, size) of the .lic files in a folder, float32 in 0...1."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths = sorted(folder.rglob("*.lic"))
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, n: int) -> Tensor:
        # Forked or spawned, on the CPU: every worker reads the weights once.  DataLoader gives each one thread.
        pixels = pillow_lic.decode_tensor(self.paths[n], device="cpu")
        if min(pixels.shape[1:]) < self.size:
            raise ValueError(f"{self.paths[n]} has fewer than {self.size} pixels a side")
        top, left = (int(torch.randint(side - self.size + 1, ())) for side in pixels.shape[1:])
        colours = pixels[: 3 if len(pixels) > 2 else 1]  # without transparency
        crop = colours[:, top : top + self.size, left : left + self.size].expand(3, -1, -1)
        return crop.float() / 255


def main() -> None:
    """Go once through the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", choices=("fork", "spawn", "forkserver"), default="spawn")
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    photos = Photos(args.folder, args.size)
    if not len(photos):
        parser.error(f"no .lic files in {args.folder}")
    start = args.start if args.workers else None
    loader = DataLoader(photos, batch_size=4, num_workers=args.workers, multiprocessing_context=start)
    seen = 0
    for batch in loader:
        seen += len(batch)
    print(f"{seen} crops from {args.workers} workers ({args.start}), mean of the last batch {float(batch.mean()):.3f}")


if __name__ == "__main__":
    main()
