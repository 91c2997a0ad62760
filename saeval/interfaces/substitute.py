"""Anything that replaces an activation: an SAE, an ablation, a control. Splicing them is one mechanism."""

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
    """Feature activations and whatever decoding needs besides (norms, scales), which the SAE itself keeps nowhere."""

    feature_acts: Float[Tensor, "batch seq d_sae"]
    """Feature activations, 0 where a feature does not fire."""
    context: Any = None
    """What `decode` needs besides: the format's own, None where it needs nothing."""


class Substitute(ABC):
    """A named function of the activations at a hook."""

    name: str = "the substitute"
    """For messages."""
    hook_name: str
    """The hook whose activations it replaces. A transcoder encodes those of another one."""
    d_in: int
    """Width of what it encodes."""
    d_sae: int | None = None
    """Number of features; None for substitutes without features."""
    reads_earlier: bool = False
    """Whether a token's features depend on earlier tokens of its row too."""

    @abstractmethod
    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d"]
    ) -> Float[Tensor, "batch seq d"]:
        """What replaces `activations`. `encoding` is None for substitutes without features."""

    def encode(self, activations: Float[Tensor, "batch seq d"]) -> Encoding:
        """Feature activations; `Undefined` where the substitute has none."""
        raise Undefined(f"{self.name} has no features")

    def at(self, token_keys: UInt64[np.ndarray, "batch seq"]) -> Substitute:
        """This substitute for the tokens with these keys: the one that encodes and decodes their activations.

        Itself, save where what it does to a token depends on which token that is (another one's
        activations in its place, noise of its own): then a copy that knows them. A batch row or a
        state kept between calls would change the numbers with the batch size.
        """
        return self

    @property
    def device(self) -> torch.device | None:
        """Where it computes; None where it follows what it is given."""
        return None

    @property
    def dtype(self) -> torch.dtype | None:
        """In which it computes; None where it follows what it is given."""
        return None

    @property
    def has_features(self) -> bool:
        """Whether it encodes at all; ablations do not."""
        return type(self).encode is not Substitute.encode

    def other_readings(self) -> Mapping[str, Substitute]:
        """What else the same weights might be, by name, such as `without input normalisation`.

        The preflight tries them: where one explains much more, the SAE is not loaded correctly.
        """
        return {}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """`W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_out]`, `b_dec [d_out]`, those it has."""
        return {}

    def weight(self, name: str) -> Tensor:
        """One of `weights`; `Undefined` where there is none of this name, or where it holds NaN or infinite values."""
        if name not in self.weights:
            raise Undefined(f"{self.name} has no {name}")
        found = self.weights[name]
        if bad := int((~found.isfinite()).sum()):
            raise Undefined(f"{name} of '{self.name}' holds {bad} NaN or infinite values of {found.numel()}")
        return found


@dataclass(frozen=True)
class Subject:
    """A substitute in a suite: what a cell is about. `key` determines its numbers; `name` is for people."""

    name: str
    hook_name: str
    key: str
    load: Callable[..., Substitute]
    """Called once a pass with the values of the quantities named by `needs`."""
    needs: tuple[str, ...] = ()
    """Quantities that `load` takes by keyword; they may not depend on a batch except through folds."""
    build_params: Mapping[str, Any] = field(default_factory=dict)
    """Constants that `needs` may name, such as the control's own parameters."""
    parent: Subject | None = None
    """For a control built from an SAE: that SAE, in whose place `needs` are resolved."""
    kind: Literal["sae", "control"] = "sae"
    input_hook: str | None = None
    """The hook that `encode` reads; None where it is `hook_name`."""
    asked_hook: str | None = None
    """What the suite calls its hook, where `hook_name`, the site's one name, is another."""
    d_in: int | None = None
    d_sae: int | None = None
    d_out: int | None = None
    """Width of the replacement; None where it is `d_in`."""
    fetch: Callable[[], None] | None = None
    """Download what `load` will read, where that is not here yet."""
    facts: Mapping[str, Any] | None = None
    """What the checkpoint says of itself, recorded with the results."""
    origin: Origin | None = None
    """Who supplies its code; None where saeval does."""

    @property
    def shown_hook(self) -> str:
        """Its hook as the suite spells it."""
        return self.asked_hook or self.hook_name


class Control(Stateless, ABC):
    """A substitute nobody trained: a class whose `__init__` is the YAML schema of its parameters.

    It keeps no state after `__init__`; what `build` returns may. `build` asks by its parameters' names for what it
    needs: `hook_name`, `d_in`, folds such as `activation_mean`, and for `per = "sae"` quantities of the parent SAE.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    per: ClassVar[Literal["hook", "sae"]] = "hook"
    build: Callable[..., Substitute]

    @property
    def copies(self) -> int:
        """How many independent draws of this control there are; their spread enters the error bar."""
        return 1


def control_faults(control: type[Control]) -> str | None:
    """Why a class is no usable control, in a sentence; None for a sound one."""
    if not callable(getattr(control, "build", None)):
        return "it has no method 'build'"
    if control.per not in ("hook", "sae"):
        return f"'per' is {control.per!r}; it must be 'hook' or 'sae'"
    return None
