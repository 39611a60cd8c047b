"""The order in which latents are coded: one list that encoder, decoder and training all follow.

A unit is a slice of channels at the positions of one parity of row + column (or at all).  Units of
one step do not see each other and share a pass of the range coder; they see all earlier steps.

    checkerboard           channel                staircase
    step  1  2             step  1 2 3 4          step     1    2    3    4    5
    all   0  1             c0    *                c0       0    1
                           c1      *              c1            0    1
                           c2        *            c2                 0    1
                           c3          *          c3                      0    1

0 and 1 are the parities, * all positions, c0...c3 slices of channels, lowest frequencies first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

TAPS = 5
"""Side of the spatial window: two positions each way."""

VOLUME = "volume"
"""The context model that has no units: pillow_lic.models.context.volume."""

CONTEXTS = ("checkerboard", "channel", "autoregressive", "staircase")


@dataclass(frozen=True)
class ContextShape:
    """A context model's size: ``width`` of its networks, ``slices``: where each but the first begins."""

    width: int = 160
    slices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", tuple(self.slices))
        if not 8 <= self.width <= 1024:
            raise ValueError(f"a context's width must be 8 to 1024, not {self.width}")
        if list(self.slices) != sorted(set(self.slices)) or any(s < 1 for s in self.slices):
            raise ValueError(f"a context's slices must be ascending channels above 0, not {list(self.slices)}")


@dataclass(frozen=True)
class Unit:
    """Channels ``first``...``last - 1`` at positions of one ``parity`` (None: all), coded in ``step``.

    A ``causal`` unit sees what comes before each position in raster order, in every channel.
    """

    step: int
    first: int
    last: int
    parity: int | None = None
    causal: bool = False


def units_of(context: str, latents: int, slices: tuple[int, ...] = ()) -> tuple[Unit, ...]:
    """The units of a context model over ``latents`` channels; ``ValueError`` for impossible slices."""
    edges = (0, *slices, latents)
    if any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"the slices {list(slices)} do not divide {latents} channels")
    parts = list(enumerate(pairwise(edges)))
    if context == "none":
        return (Unit(0, 0, latents),)
    if context == "checkerboard":
        return tuple(Unit(parity, 0, latents, parity) for parity in (0, 1))
    if context == "channel":
        return tuple(Unit(n, a, b) for n, (a, b) in parts)
    if context == "autoregressive":
        return (Unit(0, 0, latents, causal=True),)
    if context == "staircase":
        units = [Unit(n + parity, a, b, parity) for n, (a, b) in parts for parity in (0, 1)]
        return tuple(sorted(units, key=lambda u: u.step))
    raise ValueError(f"unknown context model {context!r}; known: {', '.join(CONTEXTS)}")


@dataclass(frozen=True)
class View:
    """What a unit sees: channels 0...``spatial - 1`` through their windows (``taps[channel]`` lists
    the window's positions, row * 5 + column, that are known), 0...``centre - 1`` at the position itself.
    """

    spatial: int
    centre: int
    taps: tuple[tuple[int, ...], ...]


def view_of(unit: Unit, units: tuple[Unit, ...]) -> View:
    """What ``unit`` can see of the latents decoded before it."""
    if unit.causal:
        before = tuple(range(TAPS * TAPS // 2))
        return View(unit.last, 0, (before,) * unit.last)
    latents = max(u.last for u in units)
    known: list[set[int]] = [set() for _ in range(latents)]
    for u in units:
        if u.step < unit.step:
            for channel in range(u.first, u.last):
                known[channel] |= {0, 1} if u.parity is None else {u.parity}
    own = unit.parity or 0
    spatial = sum(1 for k in known if k)
    centre = sum(1 for k in known if own in k)
    # Row plus column of the window's middle is even, so a tap's parity is relative to the unit's.
    taps = tuple(
        tuple(t for t in range(TAPS * TAPS) if (own + t // TAPS + t % TAPS) % 2 in known[c]) for c in range(spatial)
    )
    return View(spatial, centre, taps)
