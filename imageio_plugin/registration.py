"""Tells imageio about the format, without importing imageio for those who do not use it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_CONFIG = "imageio.config"


def register() -> None:
    """Add the plugin and the extension to imageio's tables; doing it twice changes nothing."""
    from imageio.config import FileExtension, extension_list, known_extensions, known_plugins
    from imageio.config.plugins import PluginConfig

    if "LIC" in known_plugins:
        return
    known_plugins["LIC"] = PluginConfig(name="LIC", class_name="LicPlugin", module_name="imageio_plugin.plugin")
    extension = FileExtension(
        name="Learned image codec",
        extension=".lic",
        priority=["LIC"],
        description="Photographs coded by a neural network (pillow-lic)",
    )
    extension_list.append(extension)
    known_extensions.setdefault(".lic", []).append(extension)


def register_when_imported() -> None:
    """Register now if imageio is imported already, else as soon as somebody imports it."""
    if _CONFIG in sys.modules:
        _register_or_warn()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_or_warn() -> None:
    try:
        register()
    except Exception as error:  # of an imageio to come: it works on without us, and so does Pillow
        from pillow_lic.warning import warn

        warn(f"imageio knows no .lic files: {type(error).__name__}: {error}")


# Neither class derives from importlib.abc's: that import alone costs 8 ms.
class _Finder:
    """Waits for one module, ``imageio.config``, and lets the ordinary finders load it."""

    _asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _CONFIG or self._asking:
            return None
        from importlib.util import find_spec

        self._asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
        return spec


class _Loader:
    """Loads ``imageio.config`` as its own loader does, then registers the plugin."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is to look as if we had never been here: its own loader answers for it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register_or_warn()
