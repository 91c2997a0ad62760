"""`Options`: how a run is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

DTYPES = ("float32", "float64", "bfloat16", "float16")


Count = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True)
class Options:
    """How to run, none of it part of a key, save `limit` and the dtypes, which change the numbers."""

    limit: Count | None = None
    device: str = "cpu"
    dtype: str | None = None
    sae_device: str | None = None
    """Where SAEs compute, if not on `device`."""
    sae_dtype: str = "float32"
    """In which SAEs compute; it changes the numbers, so it is part of their keys."""
    batch_size: Count | Literal["auto"] | None = None
    """Sequences a batch, or `auto`: as many as seem to fit. None where the suite's `batch:` decides."""
    fresh: bool = False
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    allow: tuple[str, ...] = ()
    """Names or globs of SAEs that are used whatever the preflight finds."""
