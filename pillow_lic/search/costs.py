"""What symbols cost, ready to be looked up many times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pillow_lic.entropy.tables import Tables


@dataclass(frozen=True)
class Costs:
    """Bits of each of n latents' symbols.

    ``bits`` (tables, 2 reach + 1) holds every table's costs of -reach ... reach.  Latent i enters row
    ``row[i]`` with ``sign[i] * (symbol - whole[i])``.  Where latents may lie half a step above their
    symbols, all three have a row for those that do not and one for those that do, (2, n).
    """

    bits: Tensor
    row: Tensor
    whole: Tensor
    sign: Tensor

    def of(self, symbols: Tensor) -> Tensor:
        """Bits of whole symbols float32; beyond the tables' reach the cost stays as it is there."""
        return self._look_up(self.row, self._entry(symbols))

    def of_parity(self, symbols: Tensor) -> Tensor:
        """Bits of symbols that are known to be even or known to be odd; ``bits`` has tables with parities."""
        entry = self._entry(symbols)
        count = self.bits.shape[0] // 3
        return self._look_up(self.row + count * (1 + entry.remainder(2).long()), entry)

    def part(self, choice: tuple[Any, ...]) -> Costs:
        """The costs of some of the latents."""
        return replace(self, row=self.row[choice], whole=self.whole[choice], sign=self.sign[choice])

    def _entry(self, symbols: Tensor) -> Tensor:
        return self.sign * (symbols - self.whole)

    def _look_up(self, row: Tensor, entry: Tensor) -> Tensor:
        reach = self.bits.shape[1] // 2
        return self.bits.flatten()[row * self.bits.shape[1] + entry.clamp(-reach, reach).long() + reach]


@lru_cache(maxsize=16)
def cost_table(tables: Tables, device: torch.device) -> Tensor:
    """``Costs.bits`` of some tables."""
    reach = int(tables.reach.max()) + 2
    symbols = np.arange(-reach, reach + 1)
    rows = [tables.bits_of(symbols, table) for table in range(len(tables))]
    return torch.from_numpy(np.stack(rows)).to(device, torch.float32)
