"""Importance map (Li et al. 2018; Mentzer et al. 2018): a small network says where bits matter.

It looks at the analysis transform's latents and answers with a level of quality for each 64x64 pixels,
which files carry as those of a mask (:mod:`pillow_lic.quantizers.adaptive`).  Only encoders need it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pillow_lic.models.beside import load_beside, save_beside
from pillow_lic.models.hyperprior import QualityConv
from pillow_lic.quantizers.adaptive import BLOCK

SUFFIX = ".importance"
REACH = 8.0
"""Largest level."""


class ImportanceMap(nn.Module):
    """y in nominal steps (B, M, h, w) -> levels (B, h / 4, w / 4, rounded up), not yet whole numbers."""

    def __init__(self, latents: int, width: int = 32) -> None:
        super().__init__()
        self.enter = QualityConv(latents, width, 1)
        self.near = QualityConv(2 * width, width, 3)
        self.leave = QualityConv(width, 1, 1, gain=0.05)

    def forward(self, y: Tensor, quality: Tensor) -> Tensor:
        h, w = y.shape[2:]
        y = F.pad(y, (0, -w % BLOCK, 0, -h % BLOCK), mode="replicate")
        x = F.leaky_relu(self.enter(torch.asinh(y.abs()), quality), 0.1)
        # The mean of an area, and what stands out of it.
        x = torch.cat([F.avg_pool2d(x, BLOCK), F.max_pool2d(x, BLOCK)], dim=1)
        x = F.leaky_relu(self.near(x, quality), 0.1)
        return REACH * torch.tanh(self.leave(x, quality)[:, 0])

    def save(self, model: Path, identity: bytes) -> None:
        """Write the network beside its model."""
        save_beside(model, SUFFIX, identity, self.state_dict())


def load_importance(model: Path, identity: bytes, latents: int, device: torch.device) -> ImportanceMap | None:
    """The network beside a model with so many latent channels; None if there is none or it is another model's.

    Raises ``ModelError`` if it is damaged.
    """

    def made(state: dict[str, Tensor]) -> ImportanceMap:
        with torch.device("meta"):  # no random numbers, and no default dtype
            network = ImportanceMap(latents, state["enter.weight"].shape[0])
        network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        return network.to(device).eval().requires_grad_(False)

    return load_beside(model, SUFFIX, identity, made)
