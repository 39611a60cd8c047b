"""Makes .lic known as soon as Pillow or imageio is imported: what ``python -m pillow_lic autoload on`` turns on.

Imported when the interpreter starts, so it imports nothing and never raises.
"""

import sys

_AFTER = ("PIL.Image", "PIL.ImageFile", "imageio.config")


class _Finder:
    """Waits for Pillow or imageio and lets the ordinary finders load it."""

    _asking = False
    _loading = 0

    def find_spec(self, fullname, path, target=None):
        """The ordinary specification, with a loader that registers .lic afterwards."""
        if fullname not in _AFTER or self._asking:
            return None
        self._asking = True
        try:
            from importlib.util import find_spec

            spec = find_spec(fullname)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self)
            return spec
        except Exception:
            return None
        finally:
            self._asking = False


class _Loader:
    """Loads a module as its own loader does, then imports pillow_lic."""

    def __init__(self, loader, finder):
        self._loader, self._finder = loader, finder

    def create_module(self, spec):
        """As the module's own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module):
        """As the module's own loader does; then ``import pillow_lic``, which registers the format.

        Not before the outermost one is there: PIL.ImageFile imports PIL.Image when it has nothing of its own yet.
        """
        module.__loader__ = module.__spec__.loader = self._loader
        self._finder._loading += 1
        try:
            self._loader.exec_module(module)
        finally:
            self._finder._loading -= 1
        if self._finder._loading:
            return
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        try:
            import pillow_lic  # noqa: F401
        except Exception:
            pass


if "PIL.Image" not in sys.modules:
    sys.meta_path.insert(0, _Finder())
