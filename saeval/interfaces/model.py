"""Interface of models: capture activations once, resume from a hook. Adapters are plugins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxtyping import Float

if TYPE_CHECKING:  # annotations only: listing models must not import torch
    import torch
    from torch import Tensor

    from saeval.interfaces.data import Batch


@dataclass
class Capture:
    """The outcome of one forward pass over one batch."""

    activations: dict[str, Float[Tensor, "batch seq d"]]
    """Activations by hook name, at the hooks that the run uses."""
    final: Tensor | None = None
    """The input of the unembedding (after the final norm), `[batch, seq, d_model]`, or for a reward model the reward
    `[batch]`; None if the pass stopped before it."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    """Inputs of the blocks from which a later resume starts, by block index."""

    def part(self, rows: slice | Sequence[int]) -> Capture:
        """Return the part that a resume of some of the batch's rows needs."""
        return Capture({}, None, {index: tensor[rows] for index, tensor in self.inputs.items()})


@dataclass(frozen=True)
class Resume:
    """A partial forward pass of one batch, from one hook on: a call with the hook's activations returns `final`."""

    captured: Callable[[Tensor], Capture]
    """Return the `Capture` of the partial pass: `final`, and the activations that the run keeps at later hooks."""
    part: Callable[[slice | Sequence[int]], Resume]
    """Return the same for some of the batch's rows, to save memory in backward passes."""
    until: Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
    """Return the activations at later hooks by name; the pass stops after the deepest of them."""

    def __call__(self, activations: Float[Tensor, "batch seq d"]) -> Tensor:
        final = self.captured(activations).final
        assert final is not None
        return final


class Model(ABC):
    """A loaded model. Every forward pass goes through `capture` or `resumed`."""

    kind: ClassVar[Literal["causal", "reward"]] = "causal"
    """`causal`: it returns logits of the next token; `reward`: one reward per row."""
    device: torch.device
    """Device of its weights."""
    dtype: torch.dtype
    """Dtype in which it computes."""
    chunked_head: bool | None = None
    """True if `unembed` equals the model's own logits; None before the check."""

    @abstractmethod
    def capture(self, batch: Batch, hooks: Iterable[str], final: bool, resumable: Iterable[str] = ()) -> Capture:
        """Run the model once and keep the activations at `hooks`.

        Without `final` the pass stops after the deepest hook. `resumable` names the hooks from
        which `resume` will be called with this capture.
        """

    @abstractmethod
    def resumed(
        self,
        batch: Batch,
        captured: Capture,
        hook_name: str,
        activations: Float[Tensor, "batch seq d"],
        hooks: Iterable[str] = (),
        final: bool = True,
    ) -> Capture:
        """Run the model from the hook on, with the hook's activations replaced by `activations`.

        Without `final` the pass stops after the deepest of `hooks`. The capture has `final` and the activations at
        those of `hooks` that come later. It is differentiable with respect to `activations` if gradients are enabled.
        """

    def resume(
        self, batch: Batch, captured: Capture, hook_name: str, activations: Float[Tensor, "batch seq d"]
    ) -> Tensor:
        """Return only `final` of the resumed pass."""
        final = self.resumed(batch, captured, hook_name, activations).final
        assert final is not None
        return final

    @abstractmethod
    def unembed(self, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Return the logits of final hidden states; causal models only."""

    def head(self, final: Tensor, batch: Batch) -> Float[Tensor, "batch seq vocab"]:
        """Return all logits of a final hidden state, computed by the model's own head; no block is run.

        `unembed` is compared with it on 16 tokens; if they differ, the engine uses `head`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no full-logits path")


class ModelSpec(ABC):
    """A model that can be loaded: everything known about it before its weights are read."""

    name: str
    kind: Literal["causal", "reward"] = "causal"
    """As in `Model`."""
    code: str = ""
    """Identifies the version of the adapter's code; part of every key, set by the engine."""
    live_key: str = ""
    """For a user's own loaded model: its key, in place of a hash of its weights; set by `saeval.evaluate`."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Return plain data that determines the numbers: adapter, weights hash or revision, processing, dtype."""

    @abstractmethod
    def hooks(self) -> Mapping[str, int]:
        """Return the width of every hook by its canonical name, from the config or a meta-device model."""

    @abstractmethod
    def canonical(self, hook_name: str) -> str:
        """Return the canonical spelling of a hook name (`blocks.6.hook_resid_pre`), or an unknown name unchanged."""

    def site(self, hook_name: str) -> str:
        """Return the canonical name of the tensor at a hook.

        Hooks with the same tensor have one site: in most models the output of a block is the input of the next.
        Override it for such a model; by default a hook's site is its canonical name.
        """
        return self.canonical(hook_name)

    @abstractmethod
    def tokenizer(self) -> Any:
        """Return a Hugging Face tokenizer; `SaevalError` if the model has none."""

    @abstractmethod
    def tokenizer_identity(self) -> str | None:
        """Return a hash or revision of the tokenizer, without loading it; if None, its rows are not cached."""

    @property
    @abstractmethod
    def context(self) -> int | None:
        """Longest context that the model accepts, in tokens; None if unknown."""

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids that the model embeds, from its config; None if unknown."""
        return None

    @property
    def parameters(self) -> int | None:
        """Number of the model's parameters, for estimates of time; None if unknown."""
        return None

    @property
    def padding_token(self) -> int | None:
        """Token that a reward model's own code skips at the end of a text, unlike saeval; None if there is none."""
        return None

    def warnings(self) -> Sequence[str]:
        """Return warnings about the model's files for the user before a run, such as tensors that are never read."""
        return []

    def fetch(self) -> None:  # noqa: B027 (files on disk need no fetching)
        """Download the weights if they are not on disk."""

    def facts(self) -> Mapping[str, Any]:
        """Return further facts as plain data, for checks before a run; unknown ones are left out.

        Adapters give `name` and `revision` as the publisher spells them, `model_type`, `architecture`,
        `context` (the longest, in tokens) and `chat_template` (True if its tokenizer has one: chat
        models do, and a few base models).
        """
        return {}

    @abstractmethod
    def load(self, device: str) -> Model:
        """Read the weights and return the model on `device`."""


class ModelAdapter(ABC):
    """A way to load models, chosen by `use:` (or by `adapter:` for a registered model)."""

    name: ClassVar[str]
    """The name that `use:` selects."""

    entry: ClassVar[type | None] = None
    """A class whose `__init__` takes the keys of an entry besides `use` and `adapter`; None if any key may be one."""

    @abstractmethod
    def spec(self, reference: Mapping[str, Any]) -> ModelSpec:
        """Return the model of a suite's `model:` entry, which comes without `use` and `adapter`.

        `validated_as` with a pydantic model, or `validated` with a class, raises clear errors for wrong keys.
        """

    def accepts(self, live: object) -> bool:
        """Return True if `wrap` can handle this object, a user's own loaded model."""
        return False

    def wrap(self, live: object, tokenizer: Any = None, name: str = "model") -> ModelSpec:
        """Return a spec of a live object, for `saeval.evaluate`."""
        raise NotImplementedError


@dataclass(frozen=True)
class RegisteredModel:
    """A named model, usable as `model: NAME` in a suite."""

    name: str
    adapter: str
    """Name of the `ModelAdapter` that loads it."""
    reference: Mapping[str, Any]
    """The keys of a suite's `model:` entry, as its adapter reads them."""
    description: str = ""
    aliases: tuple[str, ...] = ()
    """Other names that checkpoints of SAEs use for this model."""
