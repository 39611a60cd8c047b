"""A photograph of 12 megapixels: memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load
from PIL import Image

pytest.importorskip("resource", reason="needs the resource module of Unix")

SCRIPT = """
import resource, sys
import pillow_lic
from PIL import Image
with Image.open(sys.argv[1]) as image:
    image.load()
    if len(sys.argv) > 2:
        image.save(sys.argv[2], threads=1)
assert image.size == (4000, 3000)
unit = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


@pytest.mark.slow
def test_twelve_megapixels_take_less_than_one_and_a_half_gigabytes(tmp_path: Path) -> None:
    parts = [load(name).convert("RGB").resize((800, 600)) for name in ("astronaut", "coffee")]
    whole = Image.new("RGB", (4000, 3000))
    for n in range(25):
        whole.paste(parts[n % 2], (800 * (n % 5), 600 * (n // 5)))
    whole.save(tmp_path / "x.bmp")

    def peak(*files: Path) -> int:
        command = [sys.executable, "-c", SCRIPT, *map(str, files)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)

    assert peak(tmp_path / "x.bmp", tmp_path / "x.lic") < 1.5e9
    assert peak(tmp_path / "x.lic") < 1.5e9
