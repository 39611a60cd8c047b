"""What symbols cost, as a function that can be differentiated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pillow_lic.entropy.tables import Tables


@dataclass(frozen=True)
class Costs:
    """Bits of each of n latents' symbols.

    ``bits`` (tables, 2 reach + 1) holds every table's costs of -reach ... reach; latent i enters row
    ``row[i]`` with ``sign[i] * (symbol - whole[i])``.
    """

    bits: Tensor
    row: Tensor
    whole: Tensor
    sign: Tensor

    def of(self, symbols: Tensor) -> Tensor:
        """Bits of whole symbols (n,) float32; beyond the tables' reach the cost stays as it is there."""
        reach = self.bits.shape[1] // 2
        column = (self.sign * (symbols - self.whole)).clamp(-reach, reach).long() + reach
        return self.bits.flatten()[self.row * self.bits.shape[1] + column]

    def between(self, low: Tensor, share: Tensor) -> Tensor:
        """Expected bits (n,) where the symbol is ``low + 1`` with probability ``share``, else ``low``."""
        below = self.of(low)
        return below + share * (self.of(low + 1) - below)


@lru_cache(maxsize=16)
def cost_table(tables: Tables, device: torch.device) -> Tensor:
    """``Costs.bits`` of some tables."""
    reach = max(tables.reach) + 2
    symbols = np.arange(-reach, reach + 1)
    rows = [tables.bits_of(symbols, table) for table in range(len(tables))]
    return torch.from_numpy(np.stack(rows)).to(device, torch.float32)
