"""What the first picture of a process makes Python import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import IMAGES

SCRIPT = """
import sys
from PIL import Image
import pillow_lic
assert "torch" not in sys.modules and "numpy" not in sys.modules
im = Image.open(sys.argv[1])
im.crop((0, 0, 40, 40)).save(sys.argv[2])
with Image.open(sys.argv[2]) as back:
    back.load()
print(*sorted({"sympy", "torch._dynamo", "fsspec", "imageio", "matplotlib"} & set(sys.modules)))
"""


def test_the_first_picture_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", SCRIPT, str(IMAGES / "coffee.png"), str(tmp_path / "x.lic")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # torch's compiler takes longer to import than torch.
    assert done.stdout.split() == []
