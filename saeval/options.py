"""`Options`: how a run is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

DTYPES = ("float32", "float64", "bfloat16", "float16")
OnFinding = Literal["stop", "warn", "off"]
ON_FINDING = get_args(OnFinding)


@dataclass(frozen=True)
class Options:
    """How to run, none of it part of a key, save `limit` and the dtypes, which change the numbers."""

    limit: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    sae_device: str | None = None
    """Where SAEs compute, if not on `device`."""
    sae_dtype: str = "float32"
    """In which SAEs compute; it changes the numbers, so it is part of their keys."""
    batch_size: int | Literal["auto"] | None = None
    """Sequences a batch, or `auto`: as many as seem to fit. None where the suite's `batch:` decides."""
    fresh: bool = False
    checkpoint_seconds: float = 60.0
    allow: tuple[str, ...] = ()
    """Names or globs of SAEs that are used whatever the preflight finds."""
    preflight: OnFinding = "stop"
    """What a fatal finding of the preflight does: stop the run, or only warn; with `off` nothing is examined."""
    skip_failing: bool = False
    """Leave out what the preflight finds wrong, as failed cells, and run the rest."""
    command_line: bool = False
    """Whether the options were given as flags: messages name options as the user gives them."""

    def spelled(self, option: str, value: Any = True) -> str:
        """An option as the user gives it: `--allow x`, or from Python `allow=['x']`; `--fresh`, or `fresh=True`."""
        if not self.command_line:
            return f"{option}={[value] if option == 'allow' else value!r}"
        flag = f"--{option.replace('_', '-')}"
        return flag if value is True else f"{flag} {value}"

    def called(self, option: str) -> str:
        """The name of an option alone: `--sae-dtype`, or from Python `sae_dtype`."""
        return f"--{option.replace('_', '-')}" if self.command_line else option
