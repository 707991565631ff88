"""syncd carries trained PyTorch models from where they are trained to where they are used.

The public names are loaded at first use, so that importing syncd costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncd import errors
    from syncd.api import publish, pull, restore
    from syncd.config import load_config
    from syncd.predictor import Predictor, open_predictor

__version__ = "0.1.0"

_HOMES = {
    "open_predictor": "syncd.predictor",
    "Predictor": "syncd.predictor",
    "publish": "syncd.api",
    "pull": "syncd.api",
    "restore": "syncd.api",
    "load_config": "syncd.config",
}
__all__ = [
    "Predictor",
    "__version__",
    "errors",
    "load_config",
    "open_predictor",
    "publish",
    "pull",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("syncd.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'syncd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
