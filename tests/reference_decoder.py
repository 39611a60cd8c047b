"""A LIC range decoder written from docs/format.md alone, in plain Python integers.

It shares no code with the package, so it shows that the specification suffices and that the
tables mean exactly the integers they hold.
"""

from __future__ import annotations

from collections.abc import Sequence


class RangeDecoder:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.lower = 0
        self.range = 2**64 - 1
        self.point = self.word() << 32 | self.word()

    def word(self) -> int:
        piece = self.data[self.position : self.position + 4]
        self.position += 4
        return int.from_bytes(piece.ljust(4, b"\0"), "big")

    def symbol(self, frequencies: Sequence[int]) -> int:
        scale = self.range >> 24
        target = ((self.point - self.lower) % 2**64) // scale
        start = 0
        symbol = 0
        while target >= start + frequencies[symbol]:
            start += frequencies[symbol]
            symbol += 1
        frequency = frequencies[symbol]
        self.lower = (self.lower + scale * start) % 2**64
        self.range = scale * frequency
        if self.range < 2**32:
            self.lower = (self.lower << 32) % 2**64
            self.range <<= 32
            self.point = (self.point << 32) % 2**64 | self.word()
        return symbol


def decode(data: bytes, indices: Sequence[int], half_tables: Sequence[Sequence[int]], skip: int) -> list[int]:
    """Symbols of one pass; ``half_tables[i]`` holds the frequencies of 0...reach and the escape."""
    decoder = RangeDecoder(data)
    symbols = [0] * len(indices)
    escapes = []
    for table, half in enumerate(half_tables):
        if table < skip:
            continue
        reach = len(half) - 2
        frequencies = [*half[-2:0:-1], *half]
        for position, index in enumerate(indices):
            if index != table:
                continue
            value = decoder.symbol(frequencies) - reach
            symbols[position] = value
            if value > reach:
                escapes.append((position, reach))
    bits = [decoder.symbol([2**20] * 16) for _ in escapes]
    for (position, reach), count in zip(escapes, bits, strict=True):
        size = 2**count
        # Equal shares of 2**24; one value needs no bits at all.
        rest = decoder.symbol([2**24 // size] * size) if count else 0
        sign_and_distance = size + rest - 1
        magnitude = reach + 1 + (sign_and_distance >> 1)
        symbols[position] = -magnitude if sign_and_distance & 1 else magnitude
    return symbols


def golay_word(number: int) -> list[int]:
    """The word of a group's coset with the quantiser h24: which of its 24 latents lie half a step above."""

    def times(x: int, y: int) -> int:
        products = {(2, 2): 3, (2, 3): 1, (3, 2): 1, (3, 3): 2}
        return products.get((x, y), x * y)

    odd, h = number >> 11, number >> 5 & 63
    s = [h >> 4, h >> 2 & 3, h & 3]
    s += [times(s[0], times(x, x)) ^ times(s[1], x) ^ s[2] for x in (1, 2, 3)]
    p = [((1, 2, 4, 7) if odd else (0, 3, 5, 6))[symbol] for symbol in s]
    p = [15 - x if k < 5 and number >> k & 1 else x for k, x in enumerate(p)]
    if sum(x & 1 for x in p) % 2 != odd:
        p[5] = 15 - p[5]
    return [p[place // 4] >> place % 4 & 1 for place in range(24)]
