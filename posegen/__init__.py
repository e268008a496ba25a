"""Train, compare and serve systems for pose-guided human image synthesis from published papers.

Names are imported on first use, so that `import posegen` is fast.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posegen.catalog import SYSTEMS, override, system, variants
    from posegen.stage import System

__all__ = ["SYSTEMS", "System", "override", "system", "variants"]

_HOMES = {name: "posegen.stage" if name == "System" else "posegen.catalog" for name in __all__}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'posegen' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
