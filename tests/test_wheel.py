"""The wheel alone, in an empty environment, saves and opens a file."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import pillow_lic, sys
from PIL import Image
from pathlib import Path
assert "site-packages" in pillow_lic.__file__, pillow_lic.__file__
im = Image.open(sys.argv[1])
im.save("x.lic", quality=4)
back = Image.open("x.lic")
assert back.size == im.size and back.format == "LIC"
back.load()
print(Path("x.lic").stat().st_size)
"""


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    def run(*command: object, **options: object) -> str:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout  # type: ignore[no-any-return]

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    weights = {
        f"pillow_lic/weights/{name}.{kind}" for name in ("mse", "ms-ssim") for kind in ("safetensors", "json", "draft")
    }
    weights |= {f"pillow_lic/weights/mse.{kind}" for kind in ("importance", "volume")}
    assert {*weights, "pillow_lic_autoload.py"} <= set(names)
    assert not [n for n in names if n.startswith(("tests", "docs", "weights"))]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    run(python, "-m", "pip", "install", "--quiet", torch)
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    out = run(python, "-I", "-c", SCRIPT, ROOT / "tests" / "images" / "coffee.png", cwd=tmp_path)
    assert 500 < int(out) < 20_000
    info = run(python.with_name("lic"), "info", "--verify", tmp_path / "x.lic")
    assert "257 x 153" in info
