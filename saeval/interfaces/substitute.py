"""`Substitute`: anything that replaces activations at a hook, such as an SAE, an ablation or a control."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float, UInt64

from saeval.base.errors import Undefined
from saeval.base.stateless import Stateless

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from saeval.base.identity import Origin


class Encoding(NamedTuple):
    """Feature activations, and per-batch data that `decode` needs (norms, scales), since a substitute has no state."""

    feature_acts: Float[Tensor, "batch seq d_sae"]
    """Feature activations, 0 where a feature does not fire."""
    context: Any = None
    """Further data for `decode`, in any form; None if it needs none."""


class Substitute(ABC):
    """A named function of the activations at a hook."""

    name: str = "the substitute"
    """Its name in messages."""
    hook_name: str
    """The hook whose activations it replaces. A transcoder encodes those of another hook."""
    d_in: int
    """Width of the activations that it encodes."""
    d_sae: int | None = None
    """Number of features; None for substitutes without features."""
    reads_earlier: bool = False
    """True if the features of a token also depend on earlier tokens of its row."""

    @abstractmethod
    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d"]
    ) -> Float[Tensor, "batch seq d"]:
        """Return the replacement of `activations`. `encoding` is None for substitutes without features."""

    def encode(self, activations: Float[Tensor, "batch seq d"]) -> Encoding:
        """Return the feature activations; raise `Undefined` if the substitute has no features."""
        raise Undefined(f"{self.name} has no features")

    def at(self, token_keys: UInt64[np.ndarray, "batch seq"]) -> Substitute:
        """Return the substitute that encodes and decodes the activations of the tokens with these keys.

        By default itself. A substitute that treats tokens differently (adds noise, swaps activations
        between tokens) returns a copy with the keys, from which it derives its draws. Draws by batch row,
        or from state, would depend on the batch size.
        """
        return self

    @property
    def device(self) -> torch.device | None:
        """Device on which it computes; None: that of its input."""
        return None

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype in which it computes; None: that of its input."""
        return None

    @property
    def has_features(self) -> bool:
        """True if it defines `encode`; ablations do not."""
        return type(self).encode is not Substitute.encode

    def other_readings(self) -> Mapping[str, Substitute]:
        """Return other interpretations of the same weights, by name, such as `without input normalisation`.

        The preflight tries them: if one explains much more variance, the SAE is not loaded correctly.
        """
        return {}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Those that it has of `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_out]` and `b_dec [d_out]`."""
        return {}

    def weight(self, name: str) -> Tensor:
        """Return one of `weights`; `Undefined` if it does not exist or holds NaN or infinite values."""
        if name not in self.weights:
            raise Undefined(f"{self.name} has no {name}")
        weight = self.weights[name]
        if bad := int((~weight.isfinite()).sum()):
            raise Undefined(f"{name} of '{self.name}' holds {bad} NaN or infinite values of {weight.numel()}")
        return weight


@dataclass(frozen=True)
class Subject:
    """An SAE or control of a suite, or one of its hooks without an SAE: the subject of a cell."""

    name: str
    """Its name in tables and messages."""
    hook_name: str
    """The hook whose activations it replaces, by its canonical name."""
    key: str
    """A hash of all that determines its numbers."""
    load: Callable[..., Substitute]
    """Called once per pass with the values of the quantities in `needs`."""
    needs: tuple[str, ...] = ()
    """Quantities that `load` takes by keyword; they may depend on batches only through folds."""
    build_params: Mapping[str, Any] = field(default_factory=dict)
    """Constants that `needs` may name, such as the control's own parameters."""
    parent: Subject | None = None
    """For a control built from an SAE: that SAE, for which `needs` are resolved."""
    kind: Literal["sae", "control", "hook"] = "sae"
    """`hook`: a place of the suite's `hooks:`, at which nothing replaces the activations; it is never loaded."""
    input_hook: str | None = None
    """The hook whose activations `encode` takes; None if it is `hook_name`."""
    asked_hook: str | None = None
    """The hook as the suite spells it, if that is not `hook_name`."""
    d_in: int | None = None
    d_sae: int | None = None
    d_out: int | None = None
    """Width of the replacement; None if it is `d_in`."""
    fetch: Callable[[], None] | None = None
    """Download the files that `load` will read, if they are not on disk."""
    facts: Mapping[str, Any] | None = None
    """The checkpoint's metadata, recorded with the results."""
    origin: Origin | None = None
    """The plugin that supplies its code; None if it is saeval."""
    operations: Callable[[], float] | None = None
    """Floating-point operations that `load` takes, for the time estimate of `saeval check`; None: negligible."""

    @property
    def shown_hook(self) -> str:
        """Its hook as the suite spells it."""
        return self.asked_hook or self.hook_name


class Control(Stateless, ABC):
    """An untrained baseline. `__init__` is the schema of its YAML parameters.

    It keeps no state after `__init__`; the substitute that `build` returns may. The parameters of `build` are requests:
    `hook_name`, `d_in`, folds such as `activation_mean`, and with `per = "sae"` quantities of the parent SAE.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Part of every key; raise it when the numbers change."""
    per: ClassVar[Literal["hook", "sae"]] = "hook"
    """One control per hook, or one per SAE."""
    standing: ClassVar[int | None] = None
    """Its place among the controls that a value of quality ranks below trained SAEs, the best with the highest number;
    None for a control without such a place. `saeval certify` tests this order."""
    dose: ClassVar[str | None] = None
    """The parameter that says what share of the SAE it damages, above 0 and up to 1; None for a control that does not
    damage by degrees. `saeval certify` tests that values get worse with it."""
    build: Callable[..., Substitute]
    """Return the substitute."""

    @property
    def copies(self) -> int:
        """Number of independent draws of this control; their spread enters the standard error."""
        return 1

    def operations(self, sae: Subject | None) -> float:
        """Return the floating-point operations that `build` takes, for the time estimate of `saeval check`.

        `sae` is the SAE that it is built from, with its widths if known; None for one per hook. Return 0 if the time is
        negligible. Count work other than matrix products as the operations that a matrix product does in the same time.
        """
        return 0.0


def control_faults(control: type[Control]) -> str | None:
    """Return a sentence on why a class is not a valid control; None if it is valid."""
    if not callable(getattr(control, "build", None)):
        return "it has no method 'build'"
    if control.per not in ("hook", "sae"):
        return f"'per' is {control.per!r}; it must be 'hook' or 'sae'"
    return None
