"""torch, imported when something of it is first used: `from saeval.base.lazy_torch import torch`.

Listing, checking and showing import the modules that compute, and compute nothing: without this, `saeval ls metrics`
would spend most of its time on a library that it does not use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeIs
else:

    class _Torch:
        """Stands for the module: each of its names is looked up there."""

        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            import torch  # late: it takes seconds

            return getattr(torch, name)

    torch = _Torch()

__all__ = ["is_tensor", "torch"]


def is_tensor(value: object) -> TypeIs[torch.Tensor]:
    """Whether it is a tensor; asking does not import torch, without which there is none."""
    return "torch" in sys.modules and isinstance(value, torch.Tensor)
