"""Warnings that name the line of the script that called Pillow, imageio or us."""

from __future__ import annotations

import sys
import warnings

_OURS = ("PIL", "imageio", "imageio_plugin", "pillow_lic")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, as of the nearest line up the stack that is in none of these packages."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
