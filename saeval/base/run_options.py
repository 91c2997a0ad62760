"""`RunOptions`: the options of a run, from which come the keywords of `run` and `evaluate` and the flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from saeval.base.errors import SaevalError, shown

MOST_ROWS = 10**9
"""Largest number of sequences of a suite, a batch or a limit."""
DTYPES = ("float32", "float64", "bfloat16", "float16")
RESEEDS = 5
"""Further seeds that a certificate gives each metric that draws something."""
DOSES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of each SAE that a certificate damages."""
OnFinding = Literal["stop", "warn", "off"]
_SPELLINGS = {
    "float": "float32", "single": "float32", "fp32": "float32", "f32": "float32",
    "double": "float64", "fp64": "float64", "f64": "float64",
    "half": "float16", "fp16": "float16", "f16": "float16",
    "bf16": "bfloat16",
}  # fmt: skip


def dtype_name(dtype: Any) -> Any:
    """Return the name of a dtype in any usual spelling (`bf16`, `half`, `torch.bfloat16`); other values unchanged."""
    word = str(dtype).strip().lower().removeprefix("torch.")
    name = _SPELLINGS.get(word, word)
    return name if name in DTYPES else dtype


def named_dtype(dtype: Any) -> str:
    """Return one of `DTYPES`, from any spelling; `SaevalError` for other values."""
    name = dtype_name(dtype)
    if name not in DTYPES:
        raise SaevalError(f"dtype '{dtype}': expected one of {', '.join(DTYPES)}")
    return str(name)


def named_device(device: Any) -> str:
    """Return a device as torch spells it, the best one for `auto`; `SaevalError` if it cannot be used here."""
    word = str(device).strip().lower()
    if word == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if _fault(name) is None)
    if word == "cpu":  # always available: `saeval check` need not import torch
        return word
    if fault := _fault(word):
        raise SaevalError(f"device '{device}': {fault}; choose another, or 'auto' for the best one")
    import torch  # late: model adapters use this module, and are listed without torch

    named = torch.device(word)
    return "cpu" if named.type == "cpu" else str(named)  # `cpu:0` is `cpu`, as on its tensors


def _fault(name: str) -> str | None:
    """Return why a device cannot be used here; None if it can."""
    import torch  # late: as above

    try:
        device = torch.device(name)
    except RuntimeError:
        return "torch knows no such device"
    if device.type == "meta":
        return "it holds shapes and no values"
    try:
        float(torch.zeros(1, device=device))
    except Exception as error:  # torch's backends raise different classes
        # Torch has no class for a missing backend. Its message may list all backends, or explain how to build one.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
        missing = f"Torch not compiled with {device.type.upper()} enabled"
        return f"torch cannot use it here ({missing if reason.startswith('Could not run') else reason[:120]})"
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except Exception:
        return "it has no float64, in which saeval sums"
    return None


Group = Literal["model", "suite", "run"]
"""Flags of all verbs that load a model, of all verbs that take suites, or of `run` alone."""
Count = Annotated[int, Interval(ge=1, le=MOST_ROWS)]
_DEVICE, _DTYPE, _SWITCH = "the name of a device", "the name of a dtype", "true or false"


def option(default: Any, help: str, expected: str, example: Any, metavar: str | None = None, *, of: Group) -> Any:
    """Return a field of `RunOptions` with its flag's help; errors name what was `expected`, with an `example`."""
    about = {"help": help, "expected": expected, "example": example, "metavar": metavar, "group": of}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class RunOptions:
    """Options of a run. Only `limit` and the dtypes are part of keys, since they change the numbers.

    `SaevalError` for a wrong value, or a device that cannot be used here.
    """

    # fmt: off
    device: str = option(
        "cpu", "torch device, or auto: cuda, mps or cpu (default: cpu)", _DEVICE, "cuda", of="model")
    dtype: str | None = option(
        None, "dtype of the model, such as bfloat16 or bf16", _DTYPE, "bfloat16", of="model")
    sae_device: str | None = option(
        None, "device of the SAEs, if not the model's", _DEVICE, "cpu", "DEVICE", of="model")
    sae_dtype: str = option(
        "float32", "dtype of the SAEs (default: float32)", _DTYPE, "float32", "DTYPE", of="model")
    limit: Count | None = option(
        None, "only the first N sequences; stays out of leaderboards", "a number of sequences", 8, "N", of="suite")
    batch_size: Count | Literal["auto"] | None = option(
        None, "sequences per batch, or auto: as many as fit (default: the suite's, or 16)",
        "a number of sequences or 'auto'", 16, "N", of="suite")
    block: Count = option(
        256, "sequences per block, the unit of work of a run on many machines; changes sums in their last bits "
        "(default: 256)", "a number of sequences", 64, "N", of="suite")
    allow: Sequence[str] = option(
        (), "run this SAE (or glob) even if the preflight finds something", "a list of names or globs", ["mine"],
        "SAE", of="suite")
    fresh: bool = option(
        False, "compute everything again, ignoring stored results", _SWITCH, True, of="run")
    engine: str = option(
        "local", "who computes: local, this process (default); local:N, N processes; or another engine, as NAME or "
        "NAME:WORKERS (see `saeval ls engines`)", "the name of an engine", "local:2", "NAME[:N]", of="run")
    engine_option: Sequence[str] = option(
        (), "an option of the engine, such as partition=gpu", "a list of KEY=VALUE", ["partition=gpu"], "KEY=VALUE",
        of="run")
    checkpoint_seconds: Annotated[float, Ge(0)] = option(
        60.0, "seconds between checkpoints of a pass (default: 60)", "a number of seconds", 60, "S", of="run")
    preflight: OnFinding = option(
        "stop", "stop the run or warn if the preflight finds something (default: stop); off: no preflight",
        "'stop', 'warn' or 'off'", "warn", of="run")
    skip_failing: bool = option(
        False, "record cells whose SAE or hook fails the preflight as failed; run the rest", _SWITCH, True, of="run")
    # fmt: on

    def spelled(self, option: str, value: Any = True) -> str:
        """Return an option as the user writes it, for messages: `fresh=True`, `allow=['mine']`."""
        return f"{option}={value!r}"

    def called(self, option: str) -> str:
        """Return the name of an option as the user writes it, for messages."""
        return option

    def __post_init__(self) -> None:
        """Validate the options, and normalise the spelling of devices and dtypes."""
        from saeval.base.parameters import ParameterError, validated  # late: pydantic is slow; `--help` does not use it

        options = {option.name: option for option in fields(RunOptions)}
        given = {name: _plain(getattr(self, name)) for name in options}
        try:
            checked = validated(RunOptions, given, "the options", strict=True)
        except ParameterError as error:
            raise ParameterError(
                replace(fault, sentence=self._refusal(options[str(fault.location[0])])) for fault in error.faults
            ) from None
        for name, read in _READ.items():
            checked[name] = checked[name] if checked[name] is None else read(checked[name])
        vars(self).update(checked)
        if self.skip_failing and self.preflight != "stop":
            both = f"{self.spelled('skip_failing')} with {self.spelled('preflight', self.preflight)}"
            raise SaevalError(f"{both}: these contradict each other; set only one of them")

    def _refusal(self, option: Field[Any]) -> str:
        example = self.spelled(option.name, option.metadata["example"])
        value = shown(getattr(self, option.name))
        return f"{self.called(option.name)} must be {option.metadata['expected']}, such as {example}; got {value}"


class FlagOptions(RunOptions):
    """Options that were given as flags; messages name the flags."""

    def spelled(self, option: str, value: Any = True) -> str:
        words = [] if value is True else value if isinstance(value, list) else [value]
        return " ".join([self.called(option), *map(str, words)])

    def called(self, option: str) -> str:
        return flag(option)


def flag(option: str) -> str:
    """Return the flag of an option."""
    return f"--{option.replace('_', '-')}"


_READ = {"device": named_device, "sae_device": named_device, "dtype": named_dtype, "sae_dtype": named_dtype}


def _plain(value: Any) -> Any:
    """Convert torch's devices and dtypes to names, and numpy's numbers to Python's, without importing either."""
    library = type(value).__module__.split(".")[0]
    if library == "numpy" and hasattr(value, "item"):
        return value.item()
    return str(value).removeprefix("torch.") if library == "torch" else value
