"""Decoding with a published synthesis transform: the same pixels as its layers one by one, sooner.

Nearly all the time goes into the last layers, whose activations are far larger than a processor's caches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pillow_lic.models.compressai.layers import as_convolution

_BAND = 8192
"""Positions that the last layer makes pixels of at once."""


class Synthesis:
    """A network g_s, which it takes over: all but the last layer in ``dtype``, that one in float32.

    The last layer's sums are the picture itself, which bfloat16 would round to half a level of brightness.
    """

    def __init__(self, network: nn.Sequential, dtype: torch.dtype) -> None:
        *body, last = network
        self._body = nn.Sequential(*body).to(dtype=dtype)
        weight, self._bias = as_convolution(last)
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._dtype = dtype

    def __call__(self, y: Tensor) -> Tensor:
        """y (B, M, h, w) to pixels (B, 3, 16 h, 16 w), float32, 0 ... 1."""
        x: Tensor = self._body(y.to(self._dtype).contiguous(memory_format=torch.channels_last))
        height, width = x.shape[2:]
        rows = max(1, _BAND // width) if x.device.type == "cpu" else height
        pixels = torch.empty((len(x), 3, 2 * height, 2 * width), dtype=torch.float32, device=x.device)
        for top in range(0, height, rows):
            above = min(top, 1)  # one row more on either side, where there is one
            seen = x[:, :, top - above : top + rows + 1].float()
            shown = F.pixel_shuffle(F.conv2d(seen, self._weight, self._bias, padding=1), 2)
            own = pixels[:, :, 2 * top : 2 * (top + rows)]
            own.copy_(shown[:, :, 2 * above : 2 * above + own.shape[2]])
        return pixels
