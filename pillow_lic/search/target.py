"""The quality that reaches a wanted size or PSNR."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

NEAR = 0.005
"""How far below the wanted value is near enough: half a percent of a size, 0.005 dB of a PSNR."""

ESTIMATES, ATTEMPTS = 5, 5


def largest(
    wanted: float, codes: int, estimate: Callable[[int], float], attempt: Callable[[int], tuple[T, float]]
) -> T | None:
    """The result of the largest code in 0 ... ``codes`` whose value is at most ``wanted``, nearly.

    ``estimate`` and ``attempt`` give values that rise with the code and differ by little more than a
    constant; only an attempt's counts.  None if not even code 0 is low enough.
    """
    known = {0: estimate(0), codes: estimate(codes)}
    while len(known) < ESTIMATES and 0 < (code := _solve(known, wanted)) < codes and code not in known:
        known[code] = estimate(code)
    best: tuple[int, T] | None = None
    too_large = codes + 1
    code = _solve(known, wanted)
    rise = 0.0
    before: tuple[int, float] | None = None
    for _ in range(ATTEMPTS):
        result, value = attempt(code)
        if value > wanted:
            too_large = min(too_large, code)
        elif best is None or code > best[0]:
            best = code, result
            if wanted - value < NEAR or code + 1 >= too_large:
                break
        # A secant through the last two attempts, or with the slope of the estimates around the first.
        if before is None:
            rise = (_read(known, min(codes, code + 64)) - _read(known, max(0, code - 64))) / 128
        elif code != before[0]:
            rise = (value - before[1]) / (code - before[0])
        before = code, value
        low = -1 if best is None else best[0]
        code = math.floor(code + (wanted - NEAR / 4 - value) / rise) if rise > 0 else -1
        if not low < code < too_large:
            code = (low + too_large) // 2
        if not low < code < too_large:
            break
    if best is not None:
        return best[1]
    step = 1
    while too_large > 0:
        code = max(0, too_large - step)
        result, value = attempt(code)
        if value <= wanted:
            return result
        too_large, step = code, 4 * step
    return None


def largest_of_few(wanted: float, codes: int, attempt: Callable[[int], tuple[T, float]]) -> T | None:
    """The same where values rise by leaps, as those of a few networks do: by halving."""
    best, low, high = None, -1, codes + 1
    while high - low > 1:
        code = (low + high) // 2
        result, value = attempt(code)
        if value <= wanted:
            best, low = result, code
        else:
            high = code
    return best


def _solve(known: dict[int, float], wanted: float) -> int:
    """The code that values interpolated between known codes would put at ``wanted``."""
    codes = sorted(known)
    after = bisect_right(codes, wanted, key=known.__getitem__)
    if after == 0:
        return codes[0]
    if after == len(codes):
        return codes[-1]
    low, high = codes[after - 1], codes[after]
    rise = known[high] - known[low]
    return int(low + (high - low) * (wanted - known[low]) / rise) if rise > 0 else low


def _read(known: dict[int, float], code: int) -> float:
    """The value at a code, interpolated."""
    codes = sorted(known)
    after = min(max(bisect_right(codes, code), 1), len(codes) - 1)
    low, high = codes[after - 1], codes[after]
    return known[low] + (known[high] - known[low]) * (code - low) / (high - low)
