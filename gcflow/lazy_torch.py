"""torch, imported when it is first used, for the modules that hold options.

A table, a plan or a status reads options and computes nothing, and importing torch takes seconds. Annotations are no
use of it where `from __future__ import annotations` stands.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["torch"]

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            value = getattr(import_module("torch"), name)
            # Found here from now on.
            setattr(self, name, value)
            return value

    torch = _Torch()
