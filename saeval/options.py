"""`Options`: how a run is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How to run, none of it part of a key, save `limit` and `dtype`, which change the numbers."""

    limit: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    batch_size: int = 16
    fresh: bool = False
    checkpoint_seconds: float = 60.0
    allow: tuple[str, ...] = ()
    """Names or globs of SAEs that are used whatever the preflight finds."""
