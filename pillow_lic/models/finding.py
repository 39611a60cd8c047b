"""Where model files lie, and which they are.

A model's identity, which every coded file names, is the first eight bytes of its file's SHA-256; a manifest of the
same name with .json tells people where it comes from and is not needed to use it.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

SEARCH_PATH_VARIABLE = "PILLOW_LIC_MODELS"
_PACKAGE = Path(__file__).resolve().parent.parent
_identities: dict[tuple[Path, int, int], bytes] = {}


def search_path() -> list[Path]:
    """Folders that hold models: PILLOW_LIC_MODELS, the user's data directory, the package's own."""
    given = [Path(p).absolute() for p in os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep) if p]
    own = user_models()
    return [*given, *([own] if own else []), *_own_folders()]


def user_models() -> Path | None:
    """The folder where this user's own models are looked for; None for a user without a home."""
    with suppress(RuntimeError):
        return user_data_path("pillow-lic") / "models"
    return None


def checkout() -> Path | None:
    """The root of the repository, if this code runs from a checkout of it."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None


def _own_folders() -> list[Path]:
    return [folder / "weights" for folder in (_PACKAGE, checkout()) if folder]


def is_shipped(path: Path) -> bool:
    """Whether a model file comes with the package, so that everybody has it."""
    return path.resolve().parent in _own_folders()


def installed() -> list[Path]:
    """All model files in the search path, in its order."""
    # os.path's tests are False where nobody may look, such as in another user's home; Path's raise.
    found = (p for folder in search_path() if os.path.isdir(folder) for p in sorted(folder.glob("*.safetensors")))
    return [p for p in found if os.path.isfile(p)]


def path_of(name: str) -> Path | None:
    """The file of the model of that name in the search path, or at that path if it ends in .safetensors, if there is
    one.
    """
    if name.endswith(".safetensors"):
        named = [Path(name).absolute()]  # what is read later lies there, wherever the process has gone
    else:
        named = [folder / f"{name}.safetensors" for folder in search_path() if os.sep not in name]
    return next((path for path in named if os.path.isfile(path)), None)


def identity_of(path: Path) -> bytes:
    """A file's identity, read again only if it has changed; ``OSError`` if it cannot be read."""
    stat = path.stat()
    key = (path.resolve(), stat.st_size, stat.st_mtime_ns)
    if key not in _identities:
        with path.open("rb") as file:
            _identities[key] = hashlib.file_digest(file, "sha256").digest()[:8]
    return _identities[key]


def identity_or_none(path: Path) -> bytes | None:
    """One file that cannot be read must not hide the others."""
    with suppress(OSError):
        return identity_of(path)
    return None


def manifest_of(path: Path) -> dict[str, Any]:
    """What the manifest beside a model file says; nothing if there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
