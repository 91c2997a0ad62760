"""Hugging Face models as `HookedModel`s: passes, heads, padding."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from saeval.plugin import Batch, SaevalError, out_of_memory
from saeval_models.checkpoint import SUPPORTED, Task, architecture_task
from saeval_models.families import ATTN_OUT, BOUNDARIES, FINAL_NORMALIZED, RESID_MID, End, Family, NoGraph
from saeval_models.hooked import HookedModel, Site, gain_unit, with_gain
from saeval_models.structure import parts_of, with_sites


def base_of(module: PreTrainedModel) -> tuple[str, Any]:
    """Return the name and module of a model without its head; `SaevalError` if the model has no head."""
    if module.base_model is not module:
        return module.base_model_prefix, module.base_model
    # In some classes, the prefix is not the name of an attribute.
    inner = [(name, part) for name, part in module.named_children() if isinstance(part, PreTrainedModel)]
    if len(inner) != 1 or module.get_output_embeddings() is None:
        raise SaevalError(f"{type(module).__name__} has no head; load it with AutoModelForCausalLM")
    return inner[0]


def task_of(module: PreTrainedModel) -> Task:
    """Return a model's task by its class; `SaevalError` if saeval does not support it."""
    # The class may be a user's subclass with another name.
    tasks = [architecture_task(c.__name__) for c in type(module).__mro__ if issubclass(c, PreTrainedModel)]
    task = next((task for task in tasks if task != ""), "causal")
    if task is None or module.config.is_encoder_decoder:
        raise SaevalError(f"{type(module).__name__} is not supported; saeval supports {SUPPORTED}")
    return cast(Task, task)


_FAMILIES: dict[tuple[type, str], Family] = {}
"""The families of this process by class and config."""


def family_of(module: PreTrainedModel) -> Family:
    """Return the family of a model's class with the model's config; `SaevalError` if saeval does not support it.

    A model without weights has the structure. The given one may have been changed by its owner, or wrapped.
    """
    task_of(module)
    key = type(module), module.config.to_json_string(use_diff=False)
    if key not in _FAMILIES:
        try:
            empty = without_weights(type(module)._from_config, module.config)
        except Exception:  # a user's subclass with a constructor of its own
            empty = None
        try:
            family = traced_family(module if empty is None else empty)
        except NoGraph as failure:
            return failure.family
        if empty is None:
            return family
        _FAMILIES[key] = family
    return _FAMILIES[key]


def without_weights(make: Callable[..., PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Make a model on the meta device, of parts that need no values to run."""
    with torch.inference_mode(False), torch.device("meta"):
        return make(copy.deepcopy(config), attn_implementation="eager", experts_implementation="batched_mm")


def traced_family(module: PreTrainedModel) -> Family:
    """Return the family of this model, in a short pass; `NoGraph` if the pass fails."""
    task_of(module)
    config = module.config.get_text_config()
    name, base = base_of(module)
    decoder = module.get_decoder()  # of a vision-language model, the language model
    inside = next((f"{path}." for path, part in base.named_modules() if part is decoder and path), "")
    lists = [path for path, part in base.named_modules() if isinstance(part, nn.ModuleList) and path.startswith(inside)]
    candidates = [path for path in lists if len(base.get_submodule(path)) == config.num_hidden_layers]
    if not candidates:
        raise SaevalError(f"{type(module).__name__} has no list of {config.num_hidden_layers} blocks to hook")
    parent, _, _ = candidates[0].rpartition(".")
    beside = [path for path in candidates if path.rpartition(".")[0] == parent]
    if len(beside) > 1:
        raise SaevalError(
            f"{type(module).__name__} has no blocks to hook: it keeps the parts of blocks in separate lists "
            f"({', '.join(path.removeprefix(f'{parent}.') for path in beside)})"
        )
    family = Family(name, candidates[0], BOUNDARIES, norm=_norm_of(base, candidates[0]))
    blocks = base.get_submodule(family.blocks)
    return with_sites(family, blocks, PretrainedCausal(module, blocks, {}).short_pass)


def module_sites(blocks: nn.ModuleList, family: Family) -> dict[str, Site]:
    """Return the sites of the family, and both ends of every other module in the blocks.

    Sites whose modules are missing, as in a model that its owner changed, are left out.
    """
    sites: dict[str, Site] = {}
    for index, block in enumerate(blocks):
        parts = parts_of(block)
        for suffix, ((path, end), *_) in family.sites.items():
            if path in parts:
                sites[f"blocks.{index}.{suffix}"] = Site(parts[path], end, index, suffix, family.unit, family.scale)
        if f"blocks.{index}.{ATTN_OUT}" not in sites:  # a block of another kind, such as a state space model
            sites.pop(f"blocks.{index}.{RESID_MID}", None)
        for path, part in parts.items():
            if path and not isinstance(part, nn.Dropout | nn.Identity):  # these do nothing in evaluation
                ends: tuple[End, ...] = ("in", "out")
                for end in ends:
                    sites.setdefault(family.name(index, (path, end)), Site(part, end, index))
    return sites


def final_sites(name: str, base: nn.Module, family: Family, blocks: int) -> dict[str, Site]:
    """Return the sites of the norm after the last block: its output and, if known, its output before the gain."""
    parent, _, _ = family.blocks.rpartition(".")
    norm = getattr(base.get_submodule(parent), family.norm.rpartition(".")[2], None) if family.norm else None
    if not isinstance(norm, nn.Module):
        return {}
    # A bridge's component replaces the norm and computes with its parameters.
    original = getattr(norm, "original_component", None) or norm
    sites = {f"{name}.{family.norm}": Site(norm, "out", blocks, rest=lambda state: state, norm=norm)}
    if (unit := gain_unit(original)) is not None:
        rest = functools.partial(with_gain, original, unit=unit)
        sites[FINAL_NORMALIZED] = Site(norm, "normalized", blocks, unit=unit, rest=rest, norm=norm)
    return sites


def _norm_of(base: nn.Module, blocks: str) -> str:
    """Return the path of the likely norm after the last block."""
    parent, _, _ = blocks.rpartition(".")
    beside = base.get_submodule(parent).named_children()
    norms = [name for name, part in beside if "norm" in type(part).__name__.lower() and not list(part.children())]
    return ".".join(filter(None, (parent, norms[-1]))) if norms else ""


class _Output(BaseModelOutputWithPast):
    """A base model's output with the final hidden state; all other attributes are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Final(nn.Module):
    """A stand-in for the base model and its parts, whose output is the given hidden state."""

    def __init__(self, base: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        self.__dict__.update(_base=base, _hidden=hidden)  # bypasses nn.Module, which would register the base as a child

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        return _Output(last_hidden_state=self._hidden)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_base"], name)
        return self if isinstance(value, nn.Module) else value  # OPT's head calls `model.decoder`


class PretrainedCausal(HookedModel):
    """A `*ForCausalLM`, plain or in a TransformerBridge, whose components replace the model's modules."""

    def __init__(self, module: PreTrainedModel, blocks: nn.ModuleList, sites: Mapping[str, Site]) -> None:
        super().__init__(module, blocks, sites)
        self._base_name, base = base_of(module)
        accepted = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._left_padding_checked = False

    def _forward(self, tokens: Int[Tensor, "batch seq"], **inputs: Any) -> Float[Tensor, "batch seq d_model"]:
        base = getattr(self.module, self._base_name)
        output = base(input_ids=tokens, use_cache=False, return_dict=True, **inputs)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        # Causal attention never reads later tokens, so only padding before a token needs a mask and shifted positions.
        if not bool((~batch.real[:, :-1] & batch.real[:, 1:]).any()):
            return {}
        attention_mask = batch.real.long()
        inputs = {"attention_mask": attention_mask}
        if self._takes_positions:
            inputs["position_ids"] = (attention_mask.cumsum(1) - 1).clamp_min(0)
        if not self._left_padding_checked:
            self._check_left_padding(batch, inputs)
        return inputs

    @torch.no_grad()
    def _check_left_padding(self, batch: Batch, inputs: Mapping[str, Tensor]) -> None:
        """Raise `SaevalError` if left padding changes a row's results: some models read it, some return NaN."""
        row = int((~batch.real[:, :-1] & batch.real[:, 1:]).any(1).int().argmax())
        tokens, real = batch.tokens[row : row + 1], batch.real[row]
        bare = self._forward(tokens[:, real])[0]
        wide = self._forward(tokens, **{key: value[row : row + 1] for key, value in inputs.items()})[0, real]
        if not self.agree(wide, bare):
            raise SaevalError(f"left padding changes the results of {type(self.module).__name__}; pad on the right")
        self._left_padding_checked = True

    @torch.no_grad()
    def check(self) -> None:
        """Check that the model is causal and that a language model's head reads only the final hidden state."""
        super().check()
        if self.kind != "causal":
            return
        tokens = self._probe()
        with self.evaluating():
            expected = self.module(input_ids=tokens, use_cache=False, return_dict=True).logits[0]
            try:
                logits = self.head(self._forward(tokens))[0]
                agree = self.agree(logits, expected)
            except Exception as error:  # a head that needs other outputs of the base model
                if out_of_memory(error):
                    raise
                agree = False
        if not agree and bool(expected.isfinite().all()):
            raise SaevalError(
                f"the head of {type(self.module).__name__} reads more than the final hidden state, so its logits with "
                "an SAE spliced in cannot be computed; use a model with an ordinary head"
            )

    def head(self, final: Float[Tensor, "batch seq d_model"], batch: Batch | None = None) -> Tensor:
        """Return logits by the model's own forward with a stand-in for its base model, so that its whole head runs."""
        # Some heads use the number of tokens; only the base model uses their ids.
        tokens = batch.tokens if batch is not None else final.new_zeros(final.shape[:2], dtype=torch.long)
        base = getattr(self.module, self._base_name)
        with self.evaluating():
            setattr(self.module, self._base_name, _Final(base, final))
            try:
                return self.module(input_ids=tokens, use_cache=False, return_dict=True).logits  # type: ignore[no-any-return]
            finally:
                setattr(self.module, self._base_name, base)

    def logits(self, batch: Batch) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of a plain pass through the whole model."""
        with self.evaluating():
            inputs = self._inputs(batch)
            return self.module(input_ids=batch.tokens, use_cache=False, return_dict=True, **inputs).logits  # type: ignore[no-any-return]


class PretrainedReward(PretrainedCausal):
    """A model with a head of one output: `final` is the reward of each row, read at its last real token.

    With `padding`, a token id, the reward is read at the last real token with another id, as in transformers.
    """

    kind = "reward"

    def __init__(
        self, module: PreTrainedModel, blocks: nn.ModuleList, sites: Mapping[str, Site], score: nn.Module,
        padding: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(module, blocks, sites)
        self._score, self._padding = score, padding

    def _finish(self, hidden: Float[Tensor, "batch seq d_model"], batch: Batch) -> Float[Tensor, "batch"]:
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        read = batch.real if self._padding is None else batch.real & (batch.tokens != self._padding)
        last = (read * positions).argmax(1)
        states = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return self._score(states.to(next(self._score.parameters()).dtype))[:, 0]  # type: ignore[no-any-return]


def _score_of(module: PreTrainedModel) -> nn.Module:
    """Return the head of a `*ForSequenceClassification`; `SaevalError` if it does not return one reward per text."""
    if module.config.num_labels != 1:
        raise SaevalError(
            f"{type(module).__name__} has {module.config.num_labels} labels; a reward model must have num_labels 1"
        )
    score = getattr(module, "score", None)
    if not isinstance(score, nn.Module):
        raise SaevalError(
            f"{type(module).__name__} has no 'score' head on its last token, so it is not a supported reward model"
        )
    return score


def hooked(
    module: PreTrainedModel, family: Family, score: nn.Module | None = None, padding: int | None = None
) -> PretrainedCausal:
    """Return the model for capture and resume; a reward model if its class is one or `score` is a value head."""
    name, base = base_of(module)
    blocks = base.get_submodule(family.blocks)
    sites = {**module_sites(blocks, family), **final_sites(name, base, family, len(blocks))}
    if score is None and task_of(module) != "reward":
        return PretrainedCausal(module, blocks, sites)
    return PretrainedReward(module, blocks, sites, score or _score_of(module), padding)
