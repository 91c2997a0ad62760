"""`Options`: how a run is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from saeval.base.errors import SaevalError
from saeval.base.parameters import MOST_ROWS

DTYPES = ("float32", "float64", "bfloat16", "float16")
OnFinding = Literal["stop", "warn", "off"]
ON_FINDING = get_args(OnFinding)
_SPELLINGS = {
    "float": "float32", "single": "float32", "fp32": "float32", "f32": "float32",
    "double": "float64", "fp64": "float64", "f64": "float64",
    "half": "float16", "fp16": "float16", "f16": "float16",
    "bf16": "bfloat16",
}  # fmt: skip


def spelled(dtype: Any) -> Any:
    """The name of a dtype in its usual spellings (`bf16`, `half`, `torch.bfloat16`); anything else unchanged."""
    word = str(dtype).strip().lower().removeprefix("torch.")
    name = _SPELLINGS.get(word, word)
    return name if name in DTYPES else dtype


def named_dtype(dtype: Any) -> str:
    """One of `DTYPES`; `SaevalError` for what is none in any spelling."""
    name = spelled(dtype)
    if name not in DTYPES:
        raise SaevalError(f"dtype '{dtype}': expected one of {', '.join(DTYPES)}")
    return str(name)


def named_device(device: Any) -> str:
    """A device as torch spells it, `auto` being the best there is; `SaevalError` for one that cannot be used here."""
    word = str(device).strip().lower()
    if word == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if _fault(name) is None)
    if word == "cpu":  # there always is one, and `saeval check` need not import torch to know
        return word
    if fault := _fault(word):
        raise SaevalError(f"device '{device}': {fault}; give another, or 'auto' for the best there is")
    import torch  # late: model adapters, which spell dtypes by this module, are listed without it

    found = torch.device(word)
    return "cpu" if found.type == "cpu" else str(found)  # there is one cpu: `cpu:0` is spelled `cpu` on its tensors


def _fault(name: str) -> str | None:
    """Why a device is of no use here; None where it is."""
    import torch  # late: as above

    try:
        device = torch.device(name)
    except RuntimeError:
        return "torch knows no such device"
    if device.type == "meta":
        return "it holds shapes and no values"
    try:
        float(torch.zeros(1, device=device))
    except Exception as error:  # each of torch's backends raises what it likes
        # Torch may go on to list all its backends, or the steps that build one.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
        missing = f"Torch not compiled with {device.type.upper()} enabled"
        return f"torch cannot use it here ({missing if reason.startswith('Could not run') else reason[:120]})"
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except Exception:
        return "it has no float64, in which saeval sums"
    return None


Count = Annotated[int, Field(ge=1, le=MOST_ROWS, strict=True)]


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

    def __post_init__(self) -> None:
        """One spelling of devices and dtypes, whichever was given. `SaevalError` for those that are of no use here."""
        for name, read in (("device", named_device), ("sae_device", named_device), ("dtype", named_dtype),
                           ("sae_dtype", named_dtype)):  # fmt: skip
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, read(given))
        if self.preflight not in ON_FINDING:
            given = self.spelled("preflight", self.preflight)
            raise SaevalError(f"{given}: expected one of {', '.join(ON_FINDING)}")
        if self.skip_failing and self.preflight != "stop":
            both = f"{self.spelled('skip_failing')} with {self.spelled('preflight', self.preflight)}"
            raise SaevalError(f"{both}: the one leaves out what the other lets pass; give one of them")
