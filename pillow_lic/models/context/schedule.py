"""The order in which latents are coded: one list that encoder, decoder and training all follow.

A unit is a part of the channels at the positions of one parity of row + column (or at all).  Units of
one step do not see each other and share a pass of the range coder; they see all earlier steps.

    checkerboard           the same, divided      channel                staircase
    step  1  2             step  1  2             step  1 2 3 4          step     1    2    3    4    5
    all   0  1             c0    0  1             c0    *                c0       0    1
                           c1    1  0             c1      *              c1            0    1
                                                  c2        *            c2                 0    1
                                                  c3          *          c3                      0    1

0 and 1 are the parities, * all positions, c0...c3 parts of the channels: slices, lowest frequencies first, or
interleaved groups, each with every so-manieth channel, which know more of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

TAPS = 5
"""Side of the spatial window: two positions each way."""

VOLUME = "volume"
"""The context model that has no units: pillow_lic.models.context.volume."""

CONTEXTS = ("checkerboard", "channel", "autoregressive", "staircase")

DELAY = 9
"""Waves by which an autoregressive part follows the one before: enough to see all of its windows."""


@dataclass(frozen=True)
class Division:
    """How a context model divides the channels: into ``slices``, where each but the first begins, or into so many
    interleaved ``groups``: channel c belongs to group c mod groups.
    """

    slices: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", tuple(self.slices))
        if list(self.slices) != sorted(set(self.slices)) or any(s < 1 for s in self.slices):
            raise ValueError(f"a context's slices must be ascending channels above 0, not {list(self.slices)}")
        if not 1 <= self.groups <= 64:
            raise ValueError(f"a context's groups must be 1 to 64, not {self.groups}")
        if self.slices and self.groups > 1:
            raise ValueError("a context has slices or groups, not both")

    def order(self, latents: int) -> list[int]:
        """The channels, part by part."""
        return [channel for group in range(self.groups) for channel in range(group, latents, self.groups)]

    def edges(self, latents: int) -> list[tuple[int, int]]:
        """Where each part begins and ends in that order; ``ValueError`` if one is empty."""
        ends = [0, *self.slices, latents]
        if self.groups > 1:
            ends = [0, *accumulate(len(range(group, latents, self.groups)) for group in range(self.groups))]
        if any(a >= b for a, b in pairwise(ends)):
            named = f"slices {list(self.slices)}" if self.slices else f"{self.groups} groups"
            raise ValueError(f"the {named} do not divide {latents} channels")
        return list(pairwise(ends))

    def as_dict(self) -> dict[str, Any]:
        """What a model file says of it."""
        return {"slices": list(self.slices)} | ({"groups": self.groups} if self.groups > 1 else {})


WHOLE = Division()


@dataclass(frozen=True)
class ContextShape(Division):
    """A context model's shape in a recipe: its division, and the ``width`` of its networks."""

    width: int = 160

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.width <= 1024:
            raise ValueError(f"a context's width must be 8 to 1024, not {self.width}")


@dataclass(frozen=True)
class Unit:
    """Channels ``first``...``last - 1``, in the division's order, at positions of one ``parity`` (None: all), coded in
    ``step``.

    A ``causal`` unit is coded along the waves of column + 3 row, the first of which is its ``step``.
    """

    step: int
    first: int
    last: int
    parity: int | None = None
    causal: bool = False


def units_of(context: str, latents: int, division: Division = WHOLE) -> tuple[Unit, ...]:
    """The units of a context model over ``latents`` channels; ``ValueError`` for an impossible division."""
    parts = list(enumerate(division.edges(latents)))
    if context == "none":
        return (Unit(0, 0, latents),)
    if context == "checkerboard":
        if len(parts) > 2:
            raise ValueError(f"a checkerboard divides the channels in two, not into {len(parts)} parts")
        units = [Unit((n + parity) % 2, a, b, parity) for n, (a, b) in parts for parity in (0, 1)]
    elif context == "channel":
        units = [Unit(n, a, b) for n, (a, b) in parts]
    elif context == "autoregressive":
        units = [Unit(DELAY * n, a, b, causal=True) for n, (a, b) in parts]
    elif context == "staircase":
        units = [Unit(n + parity, a, b, parity) for n, (a, b) in parts for parity in (0, 1)]
    else:
        raise ValueError(f"unknown context model {context!r}; known: {', '.join(CONTEXTS)}")
    return tuple(sorted(units, key=lambda u: u.step))


@dataclass(frozen=True)
class View:
    """What a unit sees: channels 0...``spatial - 1`` through their windows (``taps[channel]`` lists
    the window's positions, row * 5 + column, that are known), those from ``centre`` to its end at the position itself.
    """

    spatial: int
    centre: tuple[int, int]
    taps: tuple[tuple[int, ...], ...]

    @property
    def inputs(self) -> int:
        """How many numbers its network gets beside h_s's: of each channel the value and the magnitude."""
        return 2 * (self.spatial + self.centre[1] - self.centre[0])


def view_of(unit: Unit, units: tuple[Unit, ...]) -> View:
    """What ``unit`` can see of the latents decoded before it."""
    latents = max(u.last for u in units)
    known: list[set[int]] = [set() for _ in range(latents)]
    for other in units:
        seen = {tap for tap in range(TAPS * TAPS) if _is_known(tap, unit, other)}
        for channel in range(other.first, other.last):
            known[channel] |= seen
    spatial = max((channel + 1 for channel in range(latents) if known[channel]), default=0)
    centre = [channel for channel in range(latents) if TAPS * TAPS // 2 in known[channel]]
    first, end = (centre[0], centre[-1] + 1) if centre else (0, 0)
    if len(centre) != end - first:
        raise ValueError("what a unit sees at its own position is no range of channels")
    return View(spatial, (first, end), tuple(tuple(sorted(taps)) for taps in known[:spatial]))


def _is_known(tap: int, unit: Unit, other: Unit) -> bool:
    """Whether a unit comes after what lies at a place of its window and belongs to the other one."""
    row, column = tap // TAPS - TAPS // 2, tap % TAPS - TAPS // 2
    if unit.causal:
        return column + 3 * row < unit.step - other.step
    here = other.parity is None or other.parity == ((unit.parity or 0) + row + column) % 2
    return here and other.step < unit.step
