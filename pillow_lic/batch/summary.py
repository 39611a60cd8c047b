"""What a job comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pillow_lic.batch.worker import Result


@dataclass
class Summary:
    """Counts over a job; bytes, pixels and PSNR (dB) are those of the files that it converted itself."""

    converted: int = 0
    skipped: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    pixels: int = 0
    seconds: float = 0.0
    failures: list[Result] = field(default_factory=list)
    planned: list[tuple[str, str]] = field(default_factory=list)
    _psnr: list[float] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count a result."""
        if result.error is not None:
            self.failures.append(result)
            return
        self.converted += 1
        self.bytes_before += result.before
        self.bytes_after += result.after
        self.pixels += result.pixels
        if result.psnr is not None:
            self._psnr.append(result.psnr)

    @property
    def rate(self) -> float:
        """Megapixels a second."""
        return self.pixels / 1e6 / self.seconds if self.seconds else 0.0

    @property
    def psnr(self) -> float | None:
        """The mean PSNR in dB of what was measured, if anything was."""
        return sum(self._psnr) / len(self._psnr) if self._psnr else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "converted": self.converted,
            "skipped": self.skipped,
            "failed": len(self.failures),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "psnr": None if self.psnr is None else round(self.psnr, 4),
            "megapixels": round(self.pixels / 1e6, 6),
            "seconds": round(self.seconds, 3),
            "megapixels_per_second": round(self.rate, 3),
            "failures": [{"source": r.source, "target": r.target, "error": r.error} for r in self.failures],
            "planned": [{"source": source, "target": target} for source, target in self.planned],
        }

    def text(self) -> str:
        """One line for people."""
        did = f"{len(self.planned)} to convert" if self.planned else f"{self.converted} converted"
        parts = [f"{did}, {self.skipped} already done, {len(self.failures)} failed"]
        if self.bytes_before:
            change = 100 * (self.bytes_after / self.bytes_before - 1)
            parts.append(f"{self.bytes_before} -> {self.bytes_after} bytes ({change:+.1f} %)")
        if self.psnr is not None:
            parts.append(f"{self.psnr:.2f} dB")
        if self.converted:
            parts.append(f"{self.rate:.2f} megapixels a second")
        return "; ".join(parts)
