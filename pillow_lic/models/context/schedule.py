"""The order in which latents are coded: one list that encoder, decoder and training all follow.

A unit is a part of the channels at the positions of one parity of row + column (or at all).  Units of
one step do not see each other and share a pass of the range coder; they see all earlier steps.

    checkerboard      divided           channel               staircase                 of two slices in groups
    step  1  2        step  1  2        step  1  2  3  4      step  1  2  3  4  5       step  1  2  3  4  5  6
    all   0  1        c0    0  1        c0    *               c0    0  1                c0    0  1
                      c1    1  0        c1       *            c1       0  1             c1       0  1
                                        c2          *         c2          0  1          c2             0  1
                                        c3             *      c3             0  1       c3                0  1

0 and 1 are the parities, * all positions, c0...c3 parts of the channels: slices, lowest frequencies first, and
g interleaved groups of each slice, every g-th channel, which know more of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pillow_lic.models.transforms import Architecture

TAPS = 5
"""Side of the spatial window: two positions each way."""

VOLUME = "volume"
"""The context model that has no units: pillow_lic.models.context.volume."""

HYPER = "hyper"
"""The context model of z, which goes with all of those of y: a staircase that knows no hidden layer."""

CONTEXTS = ("checkerboard", "channel", "autoregressive", "staircase")

DELAY = 9
"""Waves by which an autoregressive part follows the one before: enough to see all of its window."""


@dataclass(frozen=True)
class Division:
    """How a context model divides the channels: into ``slices``, where each but the first begins, and each of these
    into g interleaved ``groups``, each of which has every g-th channel.
    """

    slices: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", tuple(self.slices))
        if not all(type(n) is int for n in (*self.slices, self.groups)):
            raise ValueError(f"a context's slices and groups must be whole numbers, not {self.slices}, {self.groups}")
        if list(self.slices) != sorted(set(self.slices)) or any(s < 1 for s in self.slices):
            raise ValueError(f"a context's slices must be ascending channels above 0, not {list(self.slices)}")
        if not 1 <= self.groups <= 64:
            raise ValueError(f"a context's groups must be 1 to 64, not {self.groups}")

    def parts(self, latents: int) -> list[range]:
        """The channels of each group of each slice in turn; ``ValueError`` if there are too few."""
        if (len(self.slices) + 1) * self.groups <= latents:
            edges = pairwise((0, *self.slices, latents))
            found = [range(a + k, b, self.groups) for a, b in edges for k in range(self.groups)]
            if all(found):
                return found
        slices = [0, *self.slices[:64]]
        raise ValueError(f"slices from {slices} in {self.groups} groups each do not divide {latents} channels")

    def order(self, latents: int) -> list[int]:
        """The channels, part by part."""
        return [channel for part in self.parts(latents) for channel in part]

    def edges(self, latents: int) -> list[tuple[int, int]]:
        """Where each part begins and ends in that order."""
        return list(pairwise((0, *accumulate(map(len, self.parts(latents))))))

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


def channels_of(context: str, arch: Architecture) -> tuple[int, int]:
    """How many channels a context model codes, and how many of h_s's hidden layer it sees."""
    return (arch.hyperlatents, 0) if context == HYPER else (arch.latents, arch.hyper_channels)


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
    elif context in ("staircase", HYPER):
        # All slices make one staircase; where they have groups, those of each slice.
        together = division.groups if division.groups > 1 else len(parts)
        units = [Unit(n + n // together + parity, a, b, parity) for n, (a, b) in parts for parity in (0, 1)]
    else:
        raise ValueError(f"unknown context model {context!r}; known: {', '.join(CONTEXTS)}")
    return tuple(sorted(units, key=lambda u: u.step))


@dataclass(frozen=True)
class View:
    """What a unit sees: channels 0...``spatial - 1`` through their windows (``taps[channel]`` lists
    the window's positions, row * 5 + column, that are known), channels ``centre[0]`` ... ``centre[1] - 1`` at the
    position itself.
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
    for other in (u for u in units if u.causal or u.step < unit.step):
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
