"""torch, imported on first use: `from saeval.base.lazy_torch import torch`.

Verbs that list or check import modules that compute, but compute nothing. Without this module, `saeval ls metrics`
would spend most of its time importing torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from typing_extensions import TypeIs
else:

    class _Torch:
        """A proxy of the module."""

        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            import torch  # late: it takes seconds

            return getattr(torch, name)

    torch = _Torch()


def is_tensor(value: object) -> TypeIs[torch.Tensor]:
    """Return True for a torch tensor, without importing torch."""
    loaded = sys.modules.get("torch")  # `torch.Tensor` of the proxy takes five times as long
    return loaded is not None and isinstance(value, loaded.Tensor)
