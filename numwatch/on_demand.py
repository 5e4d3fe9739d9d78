"""Names of a package that are imported when they are first asked for.

Who reads a record must not wait for torch to be imported, which measuring needs.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def on_demand(package: str, homes: Mapping[str, tuple[str, ...]]) -> None:
    """Gives a package names that are imported from their modules when first asked for.

    Such a name goes before a submodule of the same name, whichever is imported first:
    `numwatch.diagnose` is the function.

    Args:
        package: The package's `__name__`.
        homes: The names each module has to give.
    """
    own = sys.modules[package]
    home_of = {name: module for module, names in homes.items() for name in names}

    class OnDemand(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in home_of:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            found = getattr(import_module(home_of[name]), name)
            self.__dict__[name] = found
            return found

        def __setattr__(self, name: str, value: object) -> None:
            # How Python binds a submodule to its package.
            if name in home_of and isinstance(value, ModuleType):
                return
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *home_of})

    own.__class__ = OnDemand
    for name in home_of.keys() & own.__dict__.keys():
        del own.__dict__[name]  # a submodule that the package has imported already
