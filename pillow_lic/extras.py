"""Packages that only some commands need, and the extras that bring them."""

from __future__ import annotations

from importlib.util import find_spec


def need(extra: str, *modules: str) -> None:
    """``ImportError`` that names the extra, if one of its modules is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(f'{" and ".join(missing)} missing: pip install "pillow-lic[{extra}]"')
