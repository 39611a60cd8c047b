"""Coverage-guided fuzzing of the decoder with Atheris (libFuzzer).

    python -m fuzz.atheris_lic -max_total_time=300 corpus/          (in tests/)

Inputs are whole files.  A mutator that knows the format changes header, chunks or tiles and makes the checksums
right again, or has libFuzzer change one chunk's payload, so that coverage grows beyond the first checksum.
"""

from __future__ import annotations

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["pillow_lic"], exclude=["pillow_lic.training", "pillow_lic.bench"]):
    import torch

    import pillow_lic
    from fuzz import cases, seeds
    from fuzz.oracle import Oracle

seeds.use_golden_models()
torch.set_num_threads(1)
pillow_lic.register_lic_opener()
ORACLE = Oracle()


def one_input(data: bytes) -> None:
    """Everything that a user can do with a file."""
    ORACLE.read(data)
    ORACLE.load(data)


def mutator(data: bytes, max_size: int, seed: int) -> bytes:
    """Another file from a file, or from any bytes."""
    rng = Random(seed)
    chunks = cases.parse(data)
    if not chunks or rng.random() < 0.1:
        data = rng.choice(list(seeds.seeds().values()))
    elif rng.random() < 0.4:
        chunk = rng.choice(chunks)
        chunk.payload = bytes(atheris.Mutate(chunk.payload or b"\0", len(chunk.payload) + 16))
        data = cases.assemble(chunks)
    elif rng.random() < 0.4 and cases.FRAME in [c.kind for c in chunks]:
        try:
            data = cases.with_other_tile(data, rng)
        except OSError:
            data = cases.mutated(data, rng)
    else:
        data = cases.mutated(data, rng)
    return data[:max_size]


def main() -> None:
    """Run until libFuzzer has enough."""
    seeds.seeds()
    atheris.Setup(sys.argv, one_input, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
