"""What the engine asks of a model: capture activations once, resume from a hook. Adapters are plugins."""

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
    """One clean pass over one batch.

    `final` is the hidden state the unembedding reads, `[batch, seq, d_model]` (after the final
    norm), or for a reward model the reward `[batch]`; None when the pass was cut before it.
    """

    activations: dict[str, Float[Tensor, "batch seq d"]]
    """By hook name, at the hooks that this run looks at."""
    final: Tensor | None = None
    """`[batch, seq, d_model]`, or for a reward model `[batch]`; None where the pass was cut."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    """Inputs of the blocks that a resume at a hook inside them will need, by block index."""

    def part(self, rows: slice | Sequence[int]) -> Capture:
        """What a resume of some of the batch's rows needs."""
        return Capture({}, None, {index: tensor[rows] for index, tensor in self.inputs.items()})


@dataclass(frozen=True)
class Resume:
    """The rest of one batch's pass, from one hook on: called with the activations there, it gives `final`."""

    captured: Callable[[Tensor], Capture]
    """`final`, and what this run keeps of hooks on the way."""
    part: Callable[[slice | Sequence[int]], Resume]
    """The same for some of the batch's rows: for what keeps a whole pass in memory, as a backward pass does."""

    def __call__(self, activations: Float[Tensor, "batch seq d"]) -> Tensor:
        final = self.captured(activations).final
        assert final is not None
        return final


class Model(ABC):
    """A loaded model. Every forward pass goes through `capture` or `resumed`."""

    kind: ClassVar[Literal["causal", "reward"]] = "causal"
    """What it gives: logits of the next token, or a reward for each row."""
    device: torch.device
    """Where its weights are."""
    dtype: torch.dtype
    """In which it computes."""
    chunked_head: bool | None = None
    """Whether `unembed` was seen to equal the model's own logits; None before the check."""

    @abstractmethod
    def capture(self, batch: Batch, hooks: Iterable[str], final: bool, resumable: Iterable[str] = ()) -> Capture:
        """Run the model once, keeping the activations at `hooks`.

        Without `final` the pass is cut as soon as the deepest hook has been seen. `resumable`
        names the hooks that `resume` will be called for with this capture.
        """

    @abstractmethod
    def resumed(
        self,
        batch: Batch,
        captured: Capture,
        hook_name: str,
        activations: Float[Tensor, "batch seq d"],
        hooks: Iterable[str] = (),
    ) -> Capture:
        """The pass with the hook's activations replaced, running only what comes after the hook.

        It keeps `final` and, of `hooks`, the activations at those that come after. Differentiable with
        respect to `activations` when gradients are enabled.
        """

    def resume(
        self, batch: Batch, captured: Capture, hook_name: str, activations: Float[Tensor, "batch seq d"]
    ) -> Tensor:
        """`final` alone of the resumed pass."""
        final = self.resumed(batch, captured, hook_name, activations).final
        assert final is not None
        return final

    @abstractmethod
    def unembed(self, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Logits of final hidden states; causal models only."""

    def head(self, final: Tensor, batch: Batch) -> Float[Tensor, "batch seq vocab"]:
        """All logits of a final hidden state by the model's own head, whatever that does; no block is run.

        `unembed` is checked against it on 16 tokens, and it is used instead where they differ.
        """
        raise NotImplementedError(f"{type(self).__name__} has no full-logits path")


class ModelSpec(ABC):
    """A model that can be loaded: everything here is known before any weight is read."""

    name: str
    kind: Literal["causal", "reward"] = "causal"
    code: str = ""
    """What makes the adapter's code the same, part of every key; set by whoever chose the adapter."""
    live_key: str = ""
    """Of a user's own loaded model: what stands for its weights and state in every key; set by `saeval.evaluate`."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Plain data that determines the numbers: adapter, weights hash or revision, processing, dtype."""

    @abstractmethod
    def hooks(self) -> Mapping[str, int]:
        """Every canonical hook name with its width, from the config or a meta-device model."""

    @abstractmethod
    def canonical(self, hook_name: str) -> str:
        """The canonical spelling of a hook name (`blocks.6.hook_resid_pre`); unknown names come back unchanged."""

    def site(self, hook_name: str) -> str:
        """The one name of the tensor at a hook, from any of its names.

        Hooks that are one tensor have one site: in most models what leaves a block is what enters the next. An adapter
        that knows so says so; otherwise a hook's site is its canonical name.
        """
        return self.canonical(hook_name)

    @abstractmethod
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer; `SaevalError` where the model has none."""

    @abstractmethod
    def tokenizer_identity(self) -> str | None:
        """Hash or revision of the tokenizer, known without loading it; None where only running it tells its tokens."""

    @property
    @abstractmethod
    def context(self) -> int | None:
        """Longest context the model accepts, or None where unknown."""

    @property
    def vocabulary(self) -> int | None:
        """How many token ids the model embeds, from its config; None where unknown."""
        return None

    @property
    def parameters(self) -> int | None:
        """How many parameters the model has, for estimates of time; None where unknown."""
        return None

    @property
    def padding_token(self) -> int | None:
        """The token that a reward model's own code passes over at the end of a text, and saeval does not."""
        return None

    def warnings(self) -> Sequence[str]:
        """Sentences on what a user should know of its files before a run, such as tensors that nothing reads."""
        return []

    def fetch(self) -> None:  # noqa: B027 (files on disk need no fetching)
        """Download the weights, where they are not here yet."""

    def facts(self) -> Mapping[str, Any]:
        """What else is known of the model, for checks before a run: plain data; what is unknown is left out.

        By the adapters: `name` and `revision` as its makers say them, `model_type`, `architecture`,
        `context` (its longest, in tokens), `chat_template` (whether its tokenizer has one: chat
        models do, and a few base models).
        """
        return {}

    @abstractmethod
    def load(self, device: str) -> Model:
        """Read the weights."""


class ModelAdapter(ABC):
    """A way to load models, chosen by `use:` (or by `adapter:` for a registered model)."""

    name: ClassVar[str]

    @abstractmethod
    def spec(self, reference: Mapping[str, Any]) -> ModelSpec:
        """The model that a suite's `model:` entry names: the entry without `use` and `adapter`.

        `validated_as` with a pydantic model, or `validated` with a class, gives clear errors for wrong keys.
        """

    def accepts(self, live: object) -> bool:
        """Whether `wrap` takes this object, a user's own loaded model."""
        return False

    def wrap(self, live: object, tokenizer: Any = None, name: str = "model") -> ModelSpec:
        """A spec around a live object, for `saeval.evaluate`."""
        raise NotImplementedError


@dataclass(frozen=True)
class RegisteredModel:
    """A named model: `reference` is what its `adapter` would find in a suite."""

    name: str
    adapter: str
    reference: Mapping[str, Any]
    description: str = ""
    aliases: tuple[str, ...] = ()
    """What checkpoints that were trained on it call it, besides its name."""
