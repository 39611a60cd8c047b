"""Analysis and synthesis transforms, started as a linear transform codec.

The pixels enter as 8x8 blocks and no layer works above 1/8 resolution, which is what keeps a CPU
decoder fast.  Before training the pair is exactly a 16x16 DCT codec (a colour rotation, an 8x8
DCT and the merge of four 8x8 blocks' coefficients into one 16x16 block's), so that training
starts from 30 to 42 dB and spends its time on what is not linear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUALITIES = 8
"""Number of quality stops; every table by quality has this many rows (qualities 1 to 8)."""

LATENT_STRIDE = 16
"""Pixels for each latent position, in both directions."""

LAMBDA_MIN, LAMBDA_MAX = 0.0018, 0.18


@dataclass(frozen=True)
class Architecture:
    """The numbers that fix the networks' shapes; stored with the weights.

    ``analysis`` and ``synthesis`` give the residual blocks at 1/8 and at 1/16 resolution.
    """

    channels: int = 192
    latents: int = 320
    analysis: tuple[int, int] = (4, 1)
    synthesis: tuple[int, int] = (4, 1)
    hyper_channels: int = 192
    hyperlatents: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "analysis", tuple(self.analysis))
        object.__setattr__(self, "synthesis", tuple(self.synthesis))
        if not 192 <= self.channels <= 1024:
            raise ValueError(f"channels must be 192 to 1024, not {self.channels}")
        if not 1 <= self.latents <= 768:
            raise ValueError(f"latents must be 1 to 768, not {self.latents}")
        counts = (*self.analysis, *self.synthesis)
        widths = (self.channels, self.latents, self.hyper_channels, self.hyperlatents)
        if not all(type(n) is int for n in (*counts, *widths)):
            raise ValueError("an architecture's numbers are whole")
        if len(counts) != 4 or not all(0 <= n <= 64 for n in counts):
            raise ValueError("analysis and synthesis are two block counts each, 0 to 64")
        if not (8 <= self.hyper_channels <= 1024 and 1 <= self.hyperlatents <= 512):
            raise ValueError("hyper_channels must be 8 to 1024, hyperlatents 1 to 512")

    def as_dict(self) -> dict[str, object]:
        """Plain values, for a manifest or a recipe."""
        return asdict(self)

    @property
    def synthesis_margin(self) -> int:
        """Latent positions around a tile that its pixels depend on."""
        return self.synthesis[1] + math.ceil(self.synthesis[0] / 2)

    @property
    def analysis_margin(self) -> int:
        """Latent positions' worth of pixels around a tile that its latents depend on."""
        return self.analysis[1] + math.ceil(self.analysis[0] / 2)


def rate_weight(quality: Tensor | float) -> Tensor:
    """Lambda of a quality in 1...8: 0.0018 to 0.18, logarithmic, for squared error on 0...255."""
    q = torch.as_tensor(quality, dtype=torch.float32)
    return LAMBDA_MIN * (LAMBDA_MAX / LAMBDA_MIN) ** ((q - 1) / (QUALITIES - 1))


def at_quality(table: Tensor, quality: Tensor) -> Tensor:
    """Row of a (8, n) table at fractional qualities: (B,) in 1...8 -> (B, n), linear between."""
    x = (quality - 1).clamp(0, QUALITIES - 1)
    low = x.floor().clamp(max=QUALITIES - 2).long()
    fraction = (x - low).to(table.dtype)[:, None]
    # One-hot rows times the table: the gradient of an indexed read is slow on every device.
    rows = F.one_hot(low, QUALITIES).to(table.dtype) * (1 - fraction)
    rows = rows + F.one_hot(low + 1, QUALITIES).to(table.dtype) * fraction
    return rows @ table


class Trunk(nn.Conv2d):
    """A 1x1 convolution that carries the picture: in float32, whatever autocast says.

    Codecs compute it so; training in bfloat16 adds 0.5 to 2 % of squared error that no weight can take away, and learns
    weights that allow for it (docs/decisions.md).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class ResidualBlock(nn.Module):
    """x + 1x1(gain(q) * act(3x3(act(1x1(x))))), zero at the start; the gain depends on quality."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gain = nn.Parameter(torch.ones(QUALITIES, hidden))
        nn.init.zeros_(self.expand.weight)
        for conv in (self.reduce, self.mix, self.expand):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        h, gain = self._hidden(x, quality)
        if len(quality) == 1:  # the same for all samples: cheaper on the kernel than on what it sees
            return x + F.conv2d(h, self.expand.weight * gain, self.expand.bias)
        return x + self.expand(h * gain)  # type: ignore[no-any-return]

    def add_to(self, x: Tensor, quality: Tensor) -> None:
        """The same in place, for one quality and x (B, C, h, w) that lies in memory position by position."""
        h, gain = self._hidden(x, quality)
        weight, bias = self.expand.weight * gain, self.expand.bias
        if not x.dtype == h.dtype == weight.dtype:
            x += F.conv2d(h, weight, bias)
            return
        assert bias is not None
        matrix = weight.flatten(1).t()
        for sums, seen in zip(torch.split(_rows(x), PART), torch.split(_rows(h), PART), strict=True):
            sums.addmm_(seen, matrix).add_(bias)

    def _hidden(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """What the block's last layer sees, and its gains."""
        # Blocks may compute in bfloat16 while the trunk, which carries the picture, stays float32.
        narrow = self.reduce.weight.dtype
        h = F.leaky_relu(self.reduce(x if narrow == torch.float32 else x.to(narrow)), 0.1, inplace=True)
        h = F.leaky_relu(self.mix(h), 0.1, inplace=True)
        return h, at_quality(self.gain, quality)[:, :, None, None].to(h.dtype)


PART = 1024
"""Positions whose sums stay in the processor's cache while two are made."""


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) as (B h w, C); no copy if it lies in memory like that."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def through(blocks: Iterable[nn.Module], x: Tensor, quality: Tensor, *, keep: bool = False) -> Tensor:
    """x (B, C, h, w) after some residual blocks; x itself may be another one then, unless told to ``keep`` it."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or len(quality) > 1:
        for block in blocks:
            x = block(x, quality)
        return x
    # Where nobody asks for gradients, what goes through is all that memory has to hold and to move.
    x = x.clone(memory_format=torch.channels_last) if keep else x.contiguous(memory_format=torch.channels_last)
    for block in blocks:
        assert isinstance(block, ResidualBlock)
        block.add_to(x, quality)
    return x


class Analysis(nn.Module):
    """Pixels (B, 3, H, W) in -127.5...127.5, H and W multiples of 16 -> y (B, M, H/16, W/16)."""

    REDUCED = ("fine", "coarse")
    """What may compute in bfloat16."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        c, (eighth, sixteenth) = arch.channels, arch.analysis
        self.stem = Trunk(192, c)
        self.fine = nn.ModuleList(ResidualBlock(c) for _ in range(eighth))
        self.down = Trunk(4 * c, arch.latents)
        self.coarse = nn.ModuleList(ResidualBlock(arch.latents) for _ in range(sixteenth))

    def forward(self, pixels: Tensor, quality: Tensor) -> Tensor:
        x = self.stem(_blocks(pixels, 8))
        x = through(self.fine, x, quality)
        x = self.down(F.pixel_unshuffle(x, 2))
        return through(self.coarse, x, quality)


def _blocks(pixels: Tensor, n: int) -> Tensor:
    """Pixel unshuffle whose result lies in memory position by position, as the convolution behind it wants it."""
    b, c, h, w = pixels.shape
    x = pixels.permute(0, 2, 3, 1).reshape(b, h // n, n, w // n, n, c)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(b, h // n, w // n, c * n * n).permute(0, 3, 1, 2)


class Synthesis(nn.Module):
    """y (B, M, h, w) in the analysis transform's units -> pixels (B, 3, 16 h, 16 w), unclamped.

    At ``scale`` 2, 4 or 8: means of so many pixels in both directions, (B, 3, 16 h / scale, 16 w / scale).
    """

    REDUCED = ("fine", "coarse")

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        c, (eighth, sixteenth) = arch.channels, arch.synthesis
        self.coarse = nn.ModuleList(ResidualBlock(arch.latents) for _ in range(sixteenth))
        self.up = Trunk(arch.latents, 4 * c)
        self.fine = nn.ModuleList(ResidualBlock(c) for _ in range(eighth))
        self.head = Trunk(c, 192)

    def forward(self, y: Tensor, quality: Tensor, scale: int = 1) -> Tensor:
        y = through(self.coarse, y, quality, keep=True)
        x = through(self.fine, F.pixel_shuffle(self.up(y), 2), quality)
        if scale == 1:
            return F.pixel_shuffle(self.head(x), 8)
        # The head is linear: the mean of its outputs is the output of its mean.
        assert self.head.bias is not None
        weight, bias = (means_of_blocks(t, scale) for t in (self.head.weight, self.head.bias))
        return F.pixel_shuffle(F.conv2d(x, weight, bias), 8 // scale)


def means_of_blocks(x: Tensor, scale: int) -> Tensor:
    """Of (3 n n, ...), the rows of colours by pixels of an n x n block: means of scale x scale pixels."""
    n = math.isqrt(x.shape[0] // 3) // scale
    return x.reshape(3, n, scale, n, scale, *x.shape[1:]).mean(dim=(2, 4)).flatten(0, 2)


def start_linear(analysis: Analysis, synthesis: Synthesis, arch: Architecture) -> None:
    """Make a pair of transforms the orthonormal 16x16 DCT codec that training starts from."""
    blocks, merge = _pad_rows(_block_dct(), arch.channels), _merge(arch.channels, arch.latents)
    _set(analysis.stem, blocks)
    _set(analysis.down, merge)
    _set(synthesis.up, merge.T)
    _set(synthesis.head, blocks.T)


def _set(conv: nn.Conv2d, matrix: Tensor) -> None:
    """Make a 1x1 convolution the given matrix (out, in), without bias."""
    with torch.no_grad():
        conv.weight.copy_(matrix[:, :, None, None])
        assert conv.bias is not None
        conv.bias.zero_()


def _dct(n: int) -> Tensor:
    """The orthonormal DCT-II matrix (frequency, position)."""
    k, i = torch.arange(n)[:, None], torch.arange(n)[None, :]
    d = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    d[0] /= math.sqrt(2)
    return d


def _block_dct() -> Tensor:
    """(192, 192): three orthonormal colour differences times the 8x8 DCT, in unshuffled order."""
    colour = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colour = colour / colour.norm(dim=1, keepdim=True)
    d = _dct(8)
    return torch.einsum("kc,ui,vj->kuvcij", colour, d, d).reshape(192, 192)


def _pad_rows(matrix: Tensor, rows: int) -> Tensor:
    """Append small random rows, the channels that the linear start leaves over."""
    extra = torch.randn(rows - matrix.shape[0], matrix.shape[1]) * 0.02
    return torch.cat([matrix, extra])


def _merge(channels: int, latents: int) -> Tensor:
    """(M, 4 C): four 8x8 blocks' coefficients into the M lowest of the 16x16 DCT.

    Chroma frequencies are counted nine steps higher, about where their energy lies.
    """
    d8, d16 = _dct(8), _dct(16)
    p = torch.stack([d16[:, :8] @ d8.T, d16[:, 8:] @ d8.T], dim=1)  # (frequency16, half, frequency8)
    full = torch.einsum("xau,ybv->xyuvab", p, p).reshape(256, 64, 4)
    frequency = torch.arange(16)[:, None] + torch.arange(16)[None, :]
    order = torch.stack([frequency.flatten() + (9 if k else 0) for k in range(3)])
    kept = order.flatten().argsort(stable=True)[:latents]
    out = torch.zeros(latents, channels, 4)
    for row, index in enumerate(kept.tolist()):
        k, xy = divmod(index, 256)
        out[row, k * 64 : (k + 1) * 64] = full[xy]
    return out.reshape(latents, 4 * channels)
