"""Call a function right after one module has been imported, without importing that module now.

`import r2q` must register its quantizer with transformers, and must cost nothing: transformers and torch take seconds
to import. So the registration waits until somebody else imports `transformers.quantizers.auto`.

Why a hook: transformers knows quantizers by a table in that module, and has no entry points for others to be found by.
Without a hook, `import r2q` would have to import torch, in every `snakemake -n` too, or users would have to call
something after importing transformers; who forgets it gets a model with random weights and a warning. The hook asks
about this one module, once, and leaves no trace in it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _ThenCall(Loader):
    """A loader that runs another one, then the callback."""

    def __init__(self, loader: Loader, callback: Callable[[], None]) -> None:
        self.loader, self.callback = loader, callback

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # the module must not look as if this loader were its own
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.callback()


class _Finder(MetaPathFinder):
    """Finds exactly one module, once, by asking all other finders."""

    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self.name, self.callback = name, callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        except BaseException:
            sys.meta_path.insert(0, self)
            raise
        if spec is None or spec.loader is None:
            return spec
        spec.loader = _ThenCall(spec.loader, self.callback)
        return spec


def after_import(name: str, callback: Callable[[], None]) -> None:
    """Call `callback()` now if module `name` is already imported, else right after its first import."""
    if name in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _Finder(name, callback))
