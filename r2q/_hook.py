"""Call a function right after one module has been imported, without importing that module now.

`import r2q` must register its quantizer with transformers, and must cost nothing: transformers and torch take seconds
to import. So the registration waits until somebody else imports `transformers.quantizers.auto`.

Why a hook: transformers knows quantizers by a table in that module, and has no entry points for others to be found by.
Without a hook, `import r2q` would have to import torch, in every `snakemake -n` too, or users would have to call
something after importing transformers; who forgets it gets a model with random weights and a warning. The hook asks
about this one module, once, and leaves no trace in it.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Finder:  # no MetaPathFinder, which takes longer to import than all of a job's start
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
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module  # this function: the loader is its own again
                execute(module)
                self.callback()

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def after_import(name: str, callback: Callable[[], None]) -> None:
    """Call `callback()` now if module `name` is already imported, else right after its first import."""
    if name in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _Finder(name, callback))
