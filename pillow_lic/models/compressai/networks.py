"""The published architectures in the float form that checkpoints hold.

    bmshj2018-factorized   transforms with GDN, one learned density a channel    Ballé et al. 2018
    bmshj2018-hyperprior   scales from hyperlatents                              Ballé et al. 2018
    mbt2018-mean           means and scales from hyperlatents                    Minnen et al. 2018
    mbt2018                and from the latents decoded before (5x5)             Minnen et al. 2018
    cheng2020-anchor       the same with residual transforms                     Cheng et al. 2020

Parameters have the names of CompressAI's checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pillow_lic.models.compressai.layers import (
    GDN,
    MaskedConv,
    ResidualBlock,
    ResidualDown,
    ResidualUp,
    conv,
    deconv,
    leaky,
    subpixel,
)


@dataclass(frozen=True)
class Published:
    """What distinguishes an architecture; margins are the latent positions around a tile that matter to it."""

    hyperprior: bool = True
    means: bool = True
    context: bool = False
    residual: bool = False

    @property
    def analysis_margin(self) -> int:
        """Latent positions' worth of pixels around a tile that its latents depend on."""
        return 4 if self.residual else 2

    @property
    def synthesis_margin(self) -> int:
        """Latent positions around a tile that its pixels depend on."""
        return 7 if self.residual else 2


ARCHITECTURES = {
    "bmshj2018-factorized": Published(hyperprior=False, means=False),
    "bmshj2018-hyperprior": Published(means=False),
    "mbt2018-mean": Published(),
    "mbt2018": Published(context=True),
    "cheng2020-anchor": Published(context=True, residual=True),
}


class Bottleneck(nn.Module):
    """A learned density for each channel, whose cumulative is a monotonic network (Ballé et al. 2018, appendix 6.1)."""

    WIDTHS = (1, 3, 3, 3, 3, 1)

    def __init__(self, channels: int) -> None:
        super().__init__()
        pairs = list(zip(self.WIDTHS, self.WIDTHS[1:], strict=False))
        self.matrices = nn.ParameterList(torch.zeros(channels, b, a) for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(channels, b, 1) for _, b in pairs)
        self.factors = nn.ParameterList(torch.zeros(channels, b, 1) for _, b in pairs[:-1])
        self.quantiles = nn.Parameter(torch.zeros(channels, 1, 3))

    @property
    def medians(self) -> Tensor:
        """What values are rounded around, (C,)."""
        return self.quantiles[:, 0, 1]

    def logits(self, x: Tensor) -> Tensor:
        """Logit of the cumulative distribution at (C, n) values."""
        x = x[:, None]
        for n, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = F.softplus(matrix) @ x + bias
            if n < len(self.factors):
                x = x + torch.tanh(self.factors[n]) * torch.tanh(x)
        return x[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Probability of the unit interval around each of (C, n) values."""
        return torch.sigmoid(self.logits(x + 0.5)) - torch.sigmoid(self.logits(x - 0.5))


class Network(nn.Module):
    """All parts of an architecture with N ``channels`` inside and M ``latents``."""

    def __init__(self, architecture: str, channels: int, latents: int) -> None:
        super().__init__()
        self.kind = ARCHITECTURES[architecture]
        n, m = self.channels, self.latents = channels, latents
        self.g_a, self.g_s = _residual_transforms(n) if self.kind.residual else _gdn_transforms(n, m)
        self.entropy_bottleneck = Bottleneck(n if self.kind.hyperprior else m)
        if self.kind.hyperprior:
            self.h_a, self.h_s = _residual_hyper(n) if self.kind.residual else _hyper(n, m, self.kind.means)
        if self.kind.context:
            self.context_prediction = MaskedConv(m, 2 * m)
            self.entropy_parameters = nn.Sequential(
                nn.Conv2d(4 * m, m * 10 // 3, 1), leaky(),
                nn.Conv2d(m * 10 // 3, m * 8 // 3, 1), leaky(),
                nn.Conv2d(m * 8 // 3, 2 * m, 1),
            )  # fmt: skip

    def hyperlatents(self, y: Tensor) -> Tensor:
        """z of y (B, M, h, w), h and w multiples of 4."""
        return self.h_a(y if self.kind.means else y.abs())  # type: ignore[no-any-return]

    def conditional(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of each latent, given decoded hyperlatents, and decoded latents where there is a context."""
        hyper = self.h_s(z)
        if self.kind.context:
            hyper = self.entropy_parameters(torch.cat([hyper, self.context_prediction(y)], dim=1))
        if not self.kind.means:
            return torch.zeros_like(hyper), hyper
        scale, mean = hyper.chunk(2, dim=1)
        return mean, scale


def _gdn_transforms(n: int, m: int) -> tuple[nn.Module, nn.Module]:
    analysis = nn.Sequential(conv(3, n), GDN(n), conv(n, n), GDN(n), conv(n, n), GDN(n), conv(n, m))
    grown = [deconv(m, n), GDN(n, True), deconv(n, n), GDN(n, True), deconv(n, n), GDN(n, True), deconv(n, 3)]
    return analysis, nn.Sequential(*grown)


def _residual_transforms(n: int) -> tuple[nn.Module, nn.Module]:
    down = [
        ResidualDown(3, n),
        ResidualBlock(n),
        ResidualDown(n, n),
        ResidualBlock(n),
        ResidualDown(n, n),
        ResidualBlock(n),
    ]
    up = [layer for _ in range(3) for layer in (ResidualBlock(n), ResidualUp(n))]
    return nn.Sequential(*down, conv(n, n, 3)), nn.Sequential(*up, ResidualBlock(n), subpixel(n, 3))


def _hyper(n: int, m: int, means: bool) -> tuple[nn.Module, nn.Module]:
    act = leaky if means else nn.ReLU
    analysis = nn.Sequential(conv(m, n, 3, 1), act(), conv(n, n), act(), conv(n, n))
    if not means:
        return analysis, nn.Sequential(deconv(n, n), act(), deconv(n, n), act(), conv(n, m, 3, 1), act())
    wide = m * 3 // 2
    return analysis, nn.Sequential(deconv(n, m), act(), deconv(m, wide), act(), conv(wide, 2 * m, 3, 1))


def _residual_hyper(n: int) -> tuple[nn.Module, nn.Module]:
    analysis = nn.Sequential(
        conv(n, n, 3, 1), leaky(), conv(n, n, 3, 1), leaky(), conv(n, n, 3), leaky(), conv(n, n, 3, 1), leaky(),
        conv(n, n, 3),
    )  # fmt: skip
    wide = n * 3 // 2
    synthesis = nn.Sequential(
        conv(n, n, 3, 1), leaky(), subpixel(n, n), leaky(), conv(n, wide, 3, 1), leaky(), subpixel(wide, wide), leaky(),
        conv(wide, 2 * n, 3, 1),
    )  # fmt: skip
    return analysis, synthesis
