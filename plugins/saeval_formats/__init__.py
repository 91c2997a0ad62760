"""Loaders for the SAE checkpoint formats of the field."""

from __future__ import annotations

from saeval.hookspecs import hookimpl
from saeval.sae import SAELoader


@hookimpl
def saeval_sae_loaders() -> list[type[SAELoader]]:
    from saeval_formats.saelens import SAELens  # late: an entry point imports nothing it may not need

    return [SAELens]
