"""Make the small checkpoints of this folder: each architecture, some minutes with CompressAI's own modules.

    python tests/published/train.py FOLDER-OF-IMAGES

Needs CompressAI (make test-compressai builds an environment that has it).  The networks are far narrower
than the published ones; what matters to the tests is that their statistics are those of photographs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import operators  # noqa: F401  (before CompressAI)
import torch
from PIL import Image
from torch import Tensor, nn

HERE = Path(__file__).parent
NETWORKS: dict[str, tuple[str, tuple[int, ...], float]] = {
    "factorized": ("bmshj2018-factorized-3", (16, 24), 0.013),
    "hyperprior": ("bmshj2018-hyperprior-3", (16, 24), 0.013),
    "mean-2": ("mbt2018-mean-2", (16, 24), 0.0067),
    "mean-5": ("mbt2018-mean-5", (20, 32), 0.05),
    "joint": ("mbt2018-3", (16, 24), 0.013),
    "cheng": ("cheng2020-anchor-3", (16,), 0.013),
}
SIZE, BATCH = 128, 8


def load(folder: Path) -> list[Tensor]:
    """Pictures as (3, H, W) uint8."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".webp"))
    pictures = []
    for path in paths[:400]:
        with Image.open(path) as image:
            if min(image.size) >= SIZE:
                pictures.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    return pictures


def batch(pictures: list[Tensor], random: np.random.Generator) -> Tensor:
    """Random crops, (BATCH, 3, SIZE, SIZE) in 0...1."""
    crops = []
    for n in random.integers(len(pictures), size=BATCH):
        top, left = (int(random.integers(s - SIZE + 1)) for s in pictures[n].shape[1:])
        crops.append(pictures[n][:, top : top + SIZE, left : left + SIZE])
    return torch.stack(crops).float() / 255


def train(kind: type[nn.Module], sizes: tuple[int, ...], weight: float, pictures: list[Tensor], seconds: float) -> dict:
    """The state of one of CompressAI's networks after so many seconds."""
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    network = kind(*sizes).train()
    parameters = [p for n, p in network.named_parameters() if not n.endswith("quantiles")]
    optimiser = torch.optim.Adam(parameters, lr=1e-3)
    started, step = time.monotonic(), 0
    while (share := (time.monotonic() - started) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, 2.05 - 2 * share)
        pixels = batch(pictures, random)
        found = network(pixels)
        bits = sum(-p.log2().sum() for p in found["likelihoods"].values()) / (BATCH * SIZE * SIZE)
        distortion = (found["x_hat"] - pixels).square().mean()
        loss = weight * 255**2 * distortion + bits
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 200 == 0:
            print(f"{step:6} {bits.item():.3f} bpp {-10 * distortion.log10().item():.2f} dB", flush=True)
        step += 1
    network.eval()
    network.entropy_bottleneck._update_quantiles()
    return network.state_dict()


def main() -> None:
    """Train those asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=150)
    args = parser.parse_args()
    from compressai.zoo.image import model_architectures

    torch.set_num_threads(1)
    pictures = load(args.images)
    for name in args.only:
        file, sizes, weight = NETWORKS[name]
        state = train(model_architectures[file[:-2]], sizes, weight, pictures, args.seconds)
        # Half precision keeps the files small; whoever reads them gets the same numbers in float32.
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        torch.save({"state_dict": state}, HERE / f"{file}.pth.tar")
        print(f"{file} is made", flush=True)


if __name__ == "__main__":
    main()
