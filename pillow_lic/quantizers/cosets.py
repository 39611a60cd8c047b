"""What entropy coding has to know of latents that lie on a lattice."""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder


class Cosets(Protocol):
    """Latents (M, h, w) of which some lie half a step above their symbols.

    ``coset`` holds the bits or the numbers of words that say so, ``half`` what they say of each latent.  Where symbols
    have to have an even sum, ``group_of_last`` names for a latent (flat) the group that it is the last one of,
    -1 for all others, and ``odd`` tells whether the sums of some groups are odd.  ``coded_by`` gives the same
    where, after any earlier such order, latents of a higher ``rank``, (M, h, w) or (M, 1, 1), come later.

    Cosets come before symbols: ``write`` and ``read`` code some of them, of which each of so many tiles one below the
    other has its count ``by_tile``; ``widest`` tells the largest scale index (M, h, w) of the latents that each moves.
    """

    @property
    def coset(self) -> NDArray[np.unsignedinteger]: ...  # noqa: D102
    @property
    def half(self) -> NDArray[np.bool_]: ...  # noqa: D102
    @property
    def group_of_last(self) -> NDArray[np.int32]: ...  # noqa: D102
    def coded_by(self, rank: NDArray[np.int32]) -> Self: ...  # noqa: D102
    def odd(  # noqa: D102
        self, symbols: NDArray[np.signedinteger], groups: NDArray[np.int32]
    ) -> NDArray[np.bool_]: ...
    def holding(self, coset: NDArray[np.unsignedinteger]) -> Self: ...  # noqa: D102
    def write(self, coder: SymbolEncoder, coset: NDArray[np.unsignedinteger]) -> None: ...  # noqa: D102
    def read(self, coder: SymbolDecoder, count: int) -> NDArray[np.integer]: ...  # noqa: D102
    def by_tile(self, tiles: int) -> NDArray[np.intp]: ...  # noqa: D102
    def widest(self, index: NDArray[np.uint8]) -> NDArray[np.uint8]: ...  # noqa: D102
