"""Makes .lic known as soon as Pillow or imageio is imported: what ``python -m pillow_lic autoload on`` turns on.

Imported when the interpreter starts, so it imports nothing and never raises.
"""

import sys

_AFTER = ("PIL.Image", "imageio.config")


class _Finder:
    """Waits for Pillow or imageio and lets the ordinary finders load it."""

    _asking = False

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
        """As the module's own loader does; then ``import pillow_lic``, which registers the format."""
        module.__loader__ = module.__spec__.loader = self._loader
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._loader.exec_module(module)
        try:
            import pillow_lic  # noqa: F401
        except Exception:
            pass


if "PIL.Image" not in sys.modules:
    sys.meta_path.insert(0, _Finder())
