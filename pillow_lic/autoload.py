"""Turns on and off that scripts know .lic without importing pillow_lic: a hook in an environment's site-packages."""

from __future__ import annotations

import site
import sysconfig
from importlib.util import find_spec
from pathlib import Path

NAME = "pillow_lic_autoload.pth"

LINE = 'import sys; exec("try: import pillow_lic_autoload\\nexcept Exception: pass")\n'
"""Python runs it at every start; nothing that goes wrong there may keep it from starting."""


def hook(folder: str | Path | None = None) -> Path:
    """Where the hook lies if it is on: in ``folder``, by default the site-packages that this package lies in."""
    return Path(folder or _own_site()) / NAME


def _own_site() -> str:
    """The environment's site-packages, or the user's own (pip install --user)."""
    spec = find_spec("pillow_lic_autoload")
    user = site.getusersitepackages()
    own = spec is not None and spec.origin is not None and Path(spec.origin).parent == Path(user)
    return user if own and site.ENABLE_USER_SITE else sysconfig.get_path("purelib")


def turn_on(folder: str | Path | None = None) -> Path:
    """Write the hook; ``OSError`` if the folder cannot be written."""
    path = hook(folder)
    path.write_text(LINE, encoding="utf-8")
    return path


def turn_off(folder: str | Path | None = None) -> Path:
    """Remove the hook, if it is there."""
    path = hook(folder)
    path.unlink(missing_ok=True)
    return path
