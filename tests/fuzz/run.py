"""A run of many hostile files, the same for the same seed.

    python -m fuzz.run --layer container --cases 1000000 --seed 1          (in tests/)

Layers: ``container`` walks chunks and opens; ``payload`` decodes files whose entropy-coded tiles were changed;
``file`` decodes files with anything changed; ``png`` transparency; ``symbols`` symbols that no picture has;
``model`` hostile .safetensors files, and what lies beside them.  Prints one line of JSON.  A broken promise ends
the run with the case on disk.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import ImageFile

from fuzz import cases, seeds
from fuzz.damage import frames_of
from fuzz.oracle import Oracle

SLOW = ("volume", "staircase", "tiled-staircase", "everything")
QUICK = ("none", "grey", "alpha", "metadata")
"""Seeds that take 10 ms and more to decode, and those that take 2: the layer ``payload`` takes these more often."""

LAYERS = ("container", "payload", "file", "png", "symbols", "model")


def attempts(layer: str, oracle: Oracle, rng: Random) -> Callable[[], object]:
    """What makes and tries the next case of a layer."""
    right = list(seeds.seeds().values())
    identity = cases.Header.unpack(cases.parse(right[0])[0].payload).model_id
    often = [1 if name.startswith(SLOW) else 20 if name.startswith(QUICK) else 5 for name in seeds.seeds()]
    expected: dict[bytes, list[np.ndarray]] = {}

    def container_case() -> None:
        data = cases.mutated(rng.choice(right), rng) if rng.random() < 0.6 else cases.from_nothing(rng, identity)
        oracle.read(data)

    def payload_case() -> None:
        (source,) = rng.choices(right, often)
        if source not in expected:
            expected[source] = frames_of(source)
        data = cases.with_other_tile(source, rng)
        oracle.load(data, expected[source])

    def file_case() -> None:
        ImageFile.LOAD_TRUNCATED_IMAGES = rng.random() < 0.3
        oracle.load(cases.mutated(rng.choice(right), rng))

    def png_case() -> None:
        from fuzz.pictures import with_other_transparency

        oracle.load(with_other_transparency(seeds.seeds()["alpha"], (33, 25), rng))

    def symbols_case() -> None:
        from fuzz.extremes import extreme_file

        if oracle.load(extreme_file(rng)) != "picture":
            raise AssertionError("a right file was refused")

    def model_case() -> None:
        from fuzz.models import hostile_model, hostile_part, right_file

        if rng.random() < 0.7:
            oracle.model(hostile_model(rng))
        else:
            oracle.model(right_file(), dict((hostile_part(rng),)))

    made = (container_case, payload_case, file_case, png_case, symbols_case, model_case)
    return dict(zip(LAYERS, made, strict=True))[layer]


def run(layer: str, count: int, seed: int, minutes: float | None = None) -> dict[str, object]:
    """Attempt so many cases, or for so many minutes; what came of them."""
    oracle, rng = Oracle(warm=min(200, count // 4)), Random(seed)
    attempt = attempts(layer, oracle, rng)
    start = time.monotonic()
    done = 0
    try:
        while done < count and (minutes is None or time.monotonic() - start < 60 * minutes):
            if done % 20 == 0:
                faulthandler.dump_traceback_later(240, exit=True)
            attempt()
            done += 1
    except Exception:
        for suffix, content in ({"": oracle.last} | dict(oracle.beside)).items():
            Path(f"broken-{layer}-{seed}-{done}{suffix}").write_bytes(content)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    took = time.monotonic() - start
    return {
        "layer": layer,
        "seed": seed,
        "cases": done,
        "seconds": round(took, 1),
        "outcomes": dict(sorted(oracle.outcomes.items())),
        "slowest_ms": round(1000 * oracle.slowest, 1),
        "grown_mb": oracle.grown() >> 20,
    }


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", choices=LAYERS, default="container")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="stop then, however many cases were tried")
    args = parser.parse_args(argv)
    seeds.use_golden_models()
    import torch

    torch.set_num_threads(1)
    print(json.dumps(run(args.layer, args.cases, args.seed, args.minutes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
