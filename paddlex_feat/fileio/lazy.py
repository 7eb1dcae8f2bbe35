"""Names of a package that are imported when they are first used, so that importing the package is cheap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for the `__init__.py` of a package.

    Type checkers do not see through them: the same names are imported under `if TYPE_CHECKING`.

    Args:
        package: its `__name__`.
        modules: names by the module of the package that has them, as "ranking.ranks".
    """
    places = {name: f"{package}.{module}" for module, names in modules.items() for name in names}
    namespace = vars(sys.modules[package])

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = value = getattr(importlib.import_module(places[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*namespace, *places})

    return __getattr__, __dir__
