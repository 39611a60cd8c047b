"""Peak memory stays below a line through the declared pixels; ``memory.py`` measures it for the shipped model."""

from __future__ import annotations

import sys

import memory
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux counts it")
def test_peak_memory_stays_below_the_line() -> None:
    pixels = 3072 * 2048
    grown = memory.measured(3072, 2048, 512, small=True)
    bound = memory.BASE * 2**20 + memory.SLOPE * pixels
    assert 3 * pixels < grown < bound  # not below the picture itself: it is measured at all
    assert grown + 40 * pixels > bound  # 40 bytes more for each pixel would be found
