"""What must hold for any bytes whatsoever: a documented error or a picture, soon, in bounded memory."""

from __future__ import annotations

import resource
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pillow_lic import container
from pillow_lic.models import finding, loading
from pillow_lic.models.errors import ModelError

PIXELS = 2**17
"""What fuzzing sets ``Image.MAX_IMAGE_PIXELS`` to; Pillow refuses twice as many."""

SECONDS = 10.0
"""Of the processor's time; no case may take longer, most take a millisecond."""

GROWTH = 200 * 2**20
"""Bytes by which the process's peak may grow over all cases: docs/security.md's line at 2 * PIXELS."""


NOISE = Image.fromarray(np.random.default_rng(1).normal(128, 60, (30, 40)).clip(0, 255).astype(np.uint8))


class BrokenPromiseError(AssertionError):
    """A case broke a promise."""


class Oracle:
    """Attempts cases and counts outcomes; raises :class:`BrokenPromiseError` with the reason."""

    def __init__(self, warm: int = 200) -> None:
        Image.MAX_IMAGE_PIXELS = PIXELS
        self.outcomes: dict[str, int] = {}
        self.slowest = 0.0
        self.last: bytes = b""
        self.beside: Mapping[str, bytes] = {}
        self._warm = warm
        self._peak: int | None = None

    def read(self, data: bytes) -> str:
        """Walk the container without decoding: what ``Image.open`` and ``verify`` do, and a lenient reader."""
        return self._watched(self._read, data)

    def load(self, data: bytes, expected: Sequence[np.ndarray] | None = None) -> str:
        """Open and decode every frame; ``expected``: the only pictures that they may be."""
        return self._watched(self._load, data, expected)

    def model(self, data: bytes, beside: Mapping[str, bytes] | None = None) -> str:
        """Load a model file with what lies ``beside`` it, by suffix, and if it is taken, code a picture with it and
        decode that.
        """
        self.beside = beside or {}
        return self._watched(self._model, data, self.beside)

    def grown(self) -> int:
        """Bytes by which the peak of the process's memory has grown since the first, ``warm`` cases."""
        return 0 if self._peak is None else _peak() - self._peak

    def _watched(self, attempt: object, data: bytes, *args: object) -> str:
        # What the first cases make (networks, tables) stays; what any case needs beyond that is bounded.
        if sum(self.outcomes.values()) == self._warm:
            self._peak = _fresh_peak()
        self.last, start = data, time.thread_time()
        try:
            outcome = str(attempt(data, *args))  # type: ignore[operator]
        except UnidentifiedImageError:
            outcome = "not ours"
        except Image.DecompressionBombError:
            outcome = "too many pixels"
        except OSError as error:
            if "LIC" not in str(error) and not isinstance(error, ModelError):
                raise BrokenPromiseError(f"an error that does not say of what: {error!r}") from error
            outcome = "refused"
        except Exception as error:
            raise BrokenPromiseError(f"undocumented {error!r}") from error
        took = time.thread_time() - start
        self.slowest = max(self.slowest, took)
        if took > SECONDS:
            raise BrokenPromiseError(f"took {took:.1f} s")
        if self.grown() > GROWTH:
            raise BrokenPromiseError(f"the process grew by {self.grown() >> 20} MB")
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        return outcome

    def _read(self, data: bytes) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=["LIC"]) as image:
                lenient = container.Reader(BytesIO(data), lenient=True)
                lenient.metadata()
                for _ in range(min(image.n_frames, 4)):
                    lenient.frame(_)
                image.verify()
        return "read"

    def _load(self, data: bytes, expected: Sequence[np.ndarray] | None) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=["LIC"]) as image:
                for frame in range(min(image.n_frames, 4)):
                    image.seek(frame)
                    image.load()
                    if expected is not None and not np.array_equal(np.asarray(image), expected[frame]):
                        raise BrokenPromiseError("a wrong picture without a word")
        return "picture"

    def _model(self, data: bytes, beside: Mapping[str, bytes]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.safetensors"
            path.write_bytes(data)
            for suffix, content in beside.items():
                path.with_suffix(suffix).write_bytes(content)
            loading._loaded.clear()  # a model that is known by its bytes is not read again
            known = loading.load_model(str(path)).contexts
            ways: list[dict[str, object]] = [
                {"context": c} for c in ("none", "staircase", "volume") if c in ("none", *known)
            ]
            ways += [{"adaptive": "importance"}] if ".importance" in beside else []
            try:
                for way in ways:
                    self._code(path, way)
            finally:
                loading._loaded.clear()
                finding._identities.clear()
        return "taken"

    @staticmethod
    def _code(path: Path, way: Mapping[str, object]) -> None:
        out = BytesIO()
        try:
            NOISE.save(out, "LIC", model=path, quality=5, **way)
        except ValueError as error:
            # A part that the model has not, or numbers so large that no symbol holds what comes of them.
            if isinstance(error, ModelError) or not str(error).startswith(("the model", "a latent is")):
                raise
            return
        for scale in (1, 4):
            with Image.open(out) as image:
                image.draft(None, (40 // scale, 30 // scale))
                image.load()


def _fresh_peak() -> int:
    """The peak from now on: what was there before is no case's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    # A child's ru_maxrss begins at its parent's, which hides growth.
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
