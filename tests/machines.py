"""The same symbols on every machine: files written on one and checked on another.

    python tests/machines.py write FOLDER        codes and decodes pictures in every way, and records what came out
    python tests/machines.py check FOLDER        decodes them here and compares
    python tests/machines.py compare [PYTHON …]  checks what this process writes with other settings and by others

Symbols are compared exactly: a file holds a checksum of all symbols and means, so that decoding it at all proves
them, and coding them again with other context models must give the same bytes.  Pixels come from floating
point and may round differently; the largest and the mean difference are reported, in 255ths.  ``--small`` takes the
golden models only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

SETTINGS: tuple[dict[str, str], ...] = (
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "avx512"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    {"PILLOW_LIC_PRECISION": "float32"},
    {"PILLOW_LIC_PRECISION": "bfloat16"},
)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the golden models only")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("write", "check"):
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.add_parser("compare").add_argument("python", nargs="*", help="interpreters with another torch")
    args = parser.parse_args(argv)
    os.environ["PILLOW_LIC_MODELS"] = str(HERE / "golden")
    import pillow_lic

    pillow_lic.register_lic_opener()
    if args.command == "write":
        write(args.folder, small=args.small)
        return 0
    if args.command == "check":
        result = check(args.folder)
        print(json.dumps(result))
        return 1 if result["wrong"] else 0
    return compare(args.python, small=args.small)


def machine() -> str:
    """What decides how floating point rounds here."""
    import torch

    from pillow_lic.devices import block_dtype

    given = [f"{k}={os.environ[k]}" for k in sorted({k for s in SETTINGS for k in s}) if k in os.environ]
    dtype = str(block_dtype(torch.device("cpu"))).removeprefix("torch.")
    torch_here = f"torch {torch.__version__}, NumPy {np.__version__}, {platform.machine()}"
    kernels = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {dtype}"
    return f"{torch_here}, {kernels}{', ' if given else ''}{' '.join(given)}"


def write(folder: Path, *, small: bool) -> None:
    """Code one picture in every way, and record the files, their pixels and what transcoding gives."""
    from pillow_lic.header import QUANTIZERS
    from pillow_lic.models.loading import load_model

    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(HERE / "images" / "coffee.png") as image:
        picture = image.crop((20, 20, 150, 110))
    ways: dict[str, dict[str, object]] = {}
    golden = str(HERE / "golden" / "lattice.safetensors")
    for model in (golden,) if small else (golden, "mse"):
        contexts = ("none", *load_model(model).contexts)
        coded = [(c, q) for c in contexts for q in QUANTIZERS if model == golden or q == "e8" or c == "staircase"]
        ways |= {
            f"{Path(model).stem}-{context}-{quantizer}": {"model": model, "context": context, "quantizer": quantizer}
            for context, quantizer in coded
        }
        ways[f"{Path(model).stem}-roi"] = {"model": model, "roi": Image.linear_gradient("L").resize(picture.size)}
        ways[f"{Path(model).stem}-low"] = {"model": model, "quality": 1}
        ways[f"{Path(model).stem}-high"] = {"model": model, "quality": 8, "tile": 64}
    record: dict[str, object] = {}
    for name, options in ways.items():
        out = BytesIO()
        picture.save(out, "LIC", **options)
        record[name] = save(folder, name, out.getvalue())
    for path in sorted((HERE / "golden").glob("*.lic")):
        if small and path.stem.startswith("scans-"):  # kind-progressive stands for them
            continue
        record[path.stem] = save(folder, path.stem, path.read_bytes())
    (folder / "record.json").write_text(json.dumps({"machine": machine(), "files": record}, indent=1))


def save(folder: Path, name: str, data: bytes) -> str:
    """Keep a file and its pixels; what transcoding it gives."""
    (folder / f"{name}.lic").write_bytes(data)
    np.save(folder / f"{name}.npy", pixels(data))
    return transcoded(data)


def pixels(data: bytes) -> np.ndarray:
    """Every frame, (frames, H, W, …)."""
    with Image.open(BytesIO(data)) as image:
        frames = []
        for n in range(image.n_frames):
            image.seek(n)
            frames.append(np.asarray(image))
    return np.stack(frames)


def transcoded(data: bytes) -> str:
    """A hash of the file coded again with every other context model: what the exact path of encoders gives."""
    import pillow_lic
    from pillow_lic import container
    from pillow_lic.models.loading import Model, model_by_identity

    header = container.Reader(BytesIO(data)).header
    model = model_by_identity(header.model_id)
    contexts = {header.context}
    if isinstance(model, Model):
        contexts |= {"none", "staircase"} & {"none", *model.contexts}
    return hashlib.sha256(b"".join(pillow_lic.transcode(data, name) for name in sorted(contexts))).hexdigest()


def check(folder: Path) -> dict[str, object]:
    """Decode what another machine has written; which files are wrong, and how far pixels are off."""
    record = json.loads((folder / "record.json").read_text())
    wrong, largest, total, count = [], 0, 0.0, 0
    for name, expected in record["files"].items():
        data = (folder / f"{name}.lic").read_bytes()
        try:
            found = pixels(data)
        except OSError as error:
            wrong.append(f"{name}: {error}")
            continue
        if transcoded(data) != expected:
            wrong.append(f"{name}: transcodes to other bytes")
        difference = np.abs(found.astype(int) - np.load(folder / f"{name}.npy"))
        largest, total, count = max(largest, int(difference.max())), total + difference.sum(), count + difference.size
    return {
        "here": machine(),
        "there": record["machine"],
        "files": len(record["files"]),
        "wrong": wrong,
        "largest": largest,
        "mean": round(total / count, 5),
    }


def compare(others: list[str], *, small: bool) -> int:
    """What this process writes, checked under every setting and by every other interpreter; a table."""
    cases = [(sys.executable, setting) for setting in SETTINGS] + [(python, {}) for python in others]
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        ours = Path(temporary)
        write(ours, small=small)
        print(f"written: {machine()}")
        for python, setting in cases:
            done = subprocess.run(
                [python, __file__, "check", str(ours)], env=os.environ | setting, capture_output=True, text=True
            )
            if not done.stdout:
                raise SystemExit(done.stderr)
            result = json.loads(done.stdout)
            failed |= bool(result["wrong"])
            verdict = f"{len(result['wrong'])} wrong" if result["wrong"] else "same symbols"
            off = f"pixels off by at most {result['largest']}, mean {result['mean']}"
            print(f"{result['here']}: {result['files']} files, {verdict}, {off}", flush=True)
            print(*result["wrong"], sep="\n", end="\n" if result["wrong"] else "")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
