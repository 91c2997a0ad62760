"""Capture and resume by torch hooks: one mechanism for every adapter."""

from __future__ import annotations

import copy
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeval.plugin import Batch, Capture, Model, SaevalError, evaluation_mode, out_of_memory
from saeval_models.families import ATTN_OUT, RESID_MID, RESID_POST, RESID_PRE, End

_PROBE_LENGTH = 13  # unlike any likely number of heads, so that only [batch, seq, ...] tensors count as activations


class _Cut(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass after all requested activations were captured."""


@dataclass(frozen=True)
class Site:
    """The place of a hook: an end of a module in a block or after the last block."""

    module: nn.Module
    end: End
    block: int
    suffix: str = ""
    """The TransformerLens name within the block; empty if there is none."""
    unit: float = 1.0
    """For a norm: the weight for a gain of 1."""
    scale: float = 1.0
    """For a scaled output: the factor."""
    rest: Callable[[Tensor], Tensor] | None = None
    """After the last block: function of the activations that returns the input of the unembedding."""
    norm: nn.Module | None = None
    """For such a site: the norm whose output is the input of the unembedding."""

    def watch(self, see: Callable[[Tensor], Tensor | None]) -> torch.utils.hooks.RemovableHandle:
        """Call `see` with the site's tensor in each forward pass; its result, unless None, replaces the tensor."""

        def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            position = next((i for i, value in enumerate(args) if isinstance(value, Tensor)), None)
            if position is not None:
                new = see(args[position])
                return None if new is None else ((*args[:position], new, *args[position + 1 :]), kwargs)
            tensors = (key for key, value in kwargs.items() if isinstance(value, Tensor))
            key = "hidden_states" if "hidden_states" in kwargs else next(tensors, None)
            new = None if key is None else see(kwargs[key])
            return None if key is None or new is None else (args, {**kwargs, key: new})

        def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, Tensor):
                return see(output)
            if not isinstance(output, tuple | list) or not output or not isinstance(output[0], Tensor):
                return None
            new = see(output[0])
            parts = (new, *output[1:])
            return None if new is None else list(parts) if isinstance(output, list) else parts

        def normalizing(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
            # A bridge's component computes the norm itself, with the parameters of the original module.
            norm = getattr(module, "original_component", None) or module
            new = see(normalized(norm, args, self.unit))
            return None if new is None else with_gain(norm, new, self.unit)

        def scaling(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            whole = output if isinstance(output, Tensor) else output[0]
            new = see(whole * self.scale)
            new = None if new is None else new / self.scale
            return new if new is None or isinstance(output, Tensor) else (new, *output[1:])

        if self.end == "scaled":
            return self.module.register_forward_hook(scaling)
        if self.end == "normalized":
            return self.module.register_forward_hook(normalizing)
        if self.end == "in":
            return self.module.register_forward_pre_hook(entering, with_kwargs=True)
        return self.module.register_forward_hook(leaving)

    def replace(self, value: Float[Tensor, "batch seq d"]) -> torch.utils.hooks.RemovableHandle:
        """Replace the site's tensor by a value, in the tensor's shape and dtype, until the handle is removed."""
        return self.watch(lambda tensor: value.reshape(tensor.shape).to(tensor.dtype).clone())


@dataclass(frozen=True)
class _Form:
    """The form of a block's output: the hidden state, or a tuple or list that begins with it."""

    kind: type
    length: int
    dtype: torch.dtype

    @classmethod
    def of(cls, output: Any) -> _Form | None:
        hidden = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(hidden, Tensor):
            return None
        kind = next((kind for kind in (tuple, list) if isinstance(output, kind)), Tensor)
        return cls(kind, 1 if kind is Tensor else len(output), hidden.dtype)

    def filled(self, hidden: Tensor) -> Any:
        """Return an output of this form, with None for everything except the hidden state."""
        hidden = hidden.to(self.dtype).clone()  # the model may write into it
        return hidden if self.kind is Tensor else self.kind((hidden, *[None] * (self.length - 1)))


_Edit = tuple[Site, Float[Tensor, "batch seq d"]]
"""A site and the tensor that replaces its own in a resumed pass."""


class _Passed(nn.Module):
    """A stand-in for a skipped block: returns a given hidden state, and has all other attributes of the block."""

    def __init__(self, block: nn.Module, form: _Form, hidden: Tensor) -> None:
        super().__init__()
        # Bypasses nn.Module, which would register the block as a child.
        self.__dict__.update(_block=block, _form=form, _hidden=hidden)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._form.filled(self._hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)


def _keep(batch: Batch, tensors: dict[Any, Tensor], name: str | int, tensor: Tensor) -> None:
    """Store a copy, because some models write into outputs, as `[batch, seq, d]`.

    The heads of TransformerLens' hook_z are flattened; some models flatten batch and seq.
    """
    tensors[name] = tensor.reshape(*batch.tokens.shape, -1).clone()


def _whole(tensor: Tensor) -> Tensor:
    """Return the tensor that `tensor` is a view of, or itself."""
    return tensor if tensor._base is None else tensor._base


class HookedModel(Model):
    """A torch model with a list of blocks and named sites inside them.

    `sites` maps canonical hook names to places. Each pass runs in evaluation mode and leaves the modules unchanged.
    """

    def __init__(self, module: nn.Module, blocks: nn.ModuleList, sites: Mapping[str, Site]) -> None:
        self.module: Any = module
        self.blocks = blocks
        self.sites = sites
        self._forms: dict[int, _Form] = {}
        """The form of each block's output, by index, once the block has run."""
        self._skippable: dict[tuple[int, bool], bool] = {}
        """(Number of first blocks, True if the last is edited) -> True if skipping them does not change the pass."""
        parts = list(self.module.modules())
        self._compiled = any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in parts)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return next(self.module.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        # Quantised weights are integers, which is not the dtype of activations.
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())  # type: ignore[no-any-return]

    @abstractmethod
    def _forward(self, tokens: Int[Tensor, "batch seq"], **inputs: Any) -> Float[Tensor, "batch seq d_model"]:
        """Run a pass up to the input of the unembedding, and return it."""

    @abstractmethod
    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the arguments of `_forward` besides the tokens that make results independent of padding.

        Called before any hook is set, so it may run the model.
        """

    @abstractmethod
    def head(self, final: Float[Tensor, "batch seq d_model"], batch: Batch | None = None) -> Tensor: ...

    def unembed(self, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        return self.head(hidden[None])[0]

    def _finish(self, hidden: Float[Tensor, "batch seq d_model"], batch: Batch) -> Tensor:
        return hidden

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the block in evaluation mode, with compiled parts in eager mode.

        Compiled code ignores hooks that were set after its compilation.
        """
        eager = torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()
        with evaluation_mode(self.module.modules()), eager:
            yield

    @torch.no_grad()
    def capture(self, batch: Batch, hooks: Iterable[str], final: bool, resumable: Iterable[str] = ()) -> Capture:
        captured = Capture({})
        wanted = {name: self.sites[name] for name in hooks}
        # Resuming inside a block runs the block again, so its input is kept.
        starts = (self.sites[n] for n in resumable)
        inner = {s.block for s in starts if s.suffix not in (RESID_PRE, RESID_MID, RESID_POST) and s.rest is None}
        pending: set[str | int] = {*wanted, *inner}
        if not pending and not final:
            return captured

        def keep(tensors: dict[Any, Tensor], key: str | int, tensor: Tensor) -> None:
            if isinstance(key, str) or tensor.ndim == 3:  # a block with several input streams runs again
                _keep(batch, tensors, key, tensor)
            pending.discard(key)
            if not pending and not final:
                raise _Cut

        def note_form(index: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if (form := _Form.of(output)) is not None:
                self._forms[index] = form

        with self.evaluating(), ExitStack() as stack:
            inputs = self._inputs(batch)
            for index in {*range(len(self.blocks))} - {*self._forms}:
                note = functools.partial(note_form, index)
                stack.callback(self.blocks[index].register_forward_hook(note).remove)
            for index in inner:
                stack.callback(self._entry(index).watch(functools.partial(keep, captured.inputs, index)).remove)
            for name, site in wanted.items():
                stack.callback(site.watch(functools.partial(keep, captured.activations, name)).remove)
            with suppress(_Cut):
                captured.final = self._finish(self._forward(batch.tokens, **inputs), batch)
        return captured

    def resumed(
        self, batch: Batch, captured: Capture, hook_name: str, activations: Float[Tensor, "batch seq d"],
        hooks: Iterable[str] = (), final: bool = True,
    ) -> Capture:  # fmt: skip
        site, resumed = self.sites[hook_name], Capture({})
        hooks = set(hooks)
        if site.rest is not None:  # no block comes after it, so no hook either
            with self.evaluating():
                resumed.final = self._finish(site.rest(activations.to(self.dtype)), batch)
            return resumed
        edits, start = self._edits(site, captured, activations)
        with self.evaluating(), ExitStack() as stack:
            inputs = self._inputs(batch)
            skip = start if self._may_skip(start, site, batch, inputs, edits) else 0

            def keep(name: str, tensor: Tensor) -> None:
                _keep(batch, resumed.activations, name, tensor)
                if not final and len(resumed.activations) == len(hooks):
                    raise _Cut

            for name in hooks:
                stack.callback(self.sites[name].watch(functools.partial(keep, name)).remove)
            with suppress(_Cut):
                resumed.final = self._finish(self._edited(batch.tokens, inputs, edits, skip), batch)
        return resumed

    def _entry(self, index: int) -> Site:
        return Site(self.blocks[index], "in", index)

    def _edits(self, site: Site, captured: Capture, activations: Tensor) -> tuple[list[_Edit], int]:
        """Return the edits that replace a site's activations, and the number of blocks that need not run."""
        entry, replaced = self._entry(site.block), (site, activations)
        if site.suffix == RESID_POST:
            return [replaced], site.block + 1
        if site.suffix == RESID_PRE:
            return [(entry, activations)], site.block
        if site.suffix == RESID_MID:
            # A block adds its attention's output to its input: the activations plus zero are exact.
            added = self.sites[f"blocks.{site.block}.{ATTN_OUT}"]
            return [(entry, activations), (added, torch.zeros_like(activations))], site.block
        entering = captured.inputs.get(site.block)
        return [*([(entry, entering)] if entering is not None else []), replaced], site.block

    def _edited(
        self, tokens: Int[Tensor, "batch seq"], inputs: Mapping[str, Any], edits: list[_Edit], skip: int
    ) -> Float[Tensor, "batch seq d_model"]:
        """Run `_forward` with the edits and without the first `skip` blocks."""
        with ExitStack() as stack:
            for index in range(skip):
                block = self.blocks[index]
                stack.callback(self.blocks.__setitem__, index, block)
                self.blocks[index] = _Passed(block, self._forms[index], edits[0][1])
            for site, value in edits:
                stack.callback(site.replace(value).remove)
            return self._forward(tokens, **inputs)

    def _may_skip(self, start: int, site: Site, batch: Batch, inputs: Mapping[str, Any], edits: list[_Edit]) -> bool:
        """True if skipping the blocks before the site does not change a pass over one row.

        In most models, blocks pass on only the hidden state. If they pass on more, such as keys and values that later
        blocks share, every block runs, which is slower and always exact.
        """
        edited = site.suffix == RESID_POST
        entered = edited or edits[0][0].module is self.blocks[site.block]
        if start == 0 or not entered or any(index not in self._forms for index in range(start)):
            return False
        if (start, edited) not in self._skippable:
            row = int(batch.real.sum(1).argmax())
            rows = slice(row, row + 1)
            # Other tokens than those captured, so that state which a block kept from the last pass is wrong here.
            tokens = batch.tokens[rows].roll(1, 1)
            some = {key: value[rows] for key, value in inputs.items()}
            parts = [(at, value[rows].detach()) for at, value in edits]
            with torch.no_grad():
                try:
                    short = self._edited(tokens, some, parts, start)
                except Exception as error:  # a model that needs state of the skipped blocks
                    if out_of_memory(error):
                        raise
                    short = None
                whole = self._edited(tokens, some, parts, 0)
            if not bool(whole[0, batch.real[row]].isfinite().all()):
                return False  # NaN or infinity proves nothing; the next activations may
            same = short is not None and self._agree(short[0], whole[0], batch.real[row], 1e-5, 1e-2)
            self._skippable[start, edited] = same
        return self._skippable[start, edited]

    def _agree(
        self, a: Float[Tensor, "seq d"], b: Float[Tensor, "seq d"], real: Tensor, single: float, half: float
    ) -> bool:
        """True if two passes have the same states, up to a relative error for single and one for half precision.

        The median over tokens decides: in half precision, rounding may route single tokens to other experts.
        """
        a, b = a[real].float(), b[real].float()
        error = float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(torch.finfo(b.dtype).tiny)).median())
        return error <= (single if torch.finfo(self.dtype).bits >= 32 else half)  # False for NaN

    def agree(self, a: Float[Tensor, "seq d"], b: Float[Tensor, "seq d"]) -> bool:
        """True if two implementations have the same states."""
        return self._agree(a, b, torch.ones_like(a[:, 0], dtype=torch.bool), 1e-3, 5e-2)

    @torch.no_grad()
    def check(self) -> None:
        """Raise `SaevalError` if a short row shows that the model is not causal.

        A token's state must not depend on later tokens, as in an encoder: it would see targets and padding.
        """
        tokens = self._probe()
        edited, mask = tokens.clone(), torch.ones_like(tokens)
        edited[0, -1] = 2
        with self.evaluating():
            states, changed = (self._forward(t, attention_mask=mask)[0, :-1] for t in (tokens, edited))
            shorter = self._forward(tokens[:, :-1], attention_mask=mask[:, :-1])[0]
        real = mask[0, :-1].bool()
        # A model that sees only the next token changes one state, so the largest change between equal shapes decides.
        sizes = states.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        moved = float(((changed - states).float().norm(dim=-1) / sizes).max())
        same = moved <= (1e-4 if torch.finfo(self.dtype).bits >= 32 else 5e-2)
        same = same and self._agree(shorter, states, real, 1e-3, 5e-2)
        if not same and bool(states.isfinite().all()):  # NaN and infinity prove nothing
            raise SaevalError(
                f"{type(self.module).__name__} is not causal: a token's state changes with later tokens, as in an "
                "encoder; saeval supports causal models (some need 'is_decoder' in their config)"
            )

    def _probe(self) -> Int[Tensor, "1 seq"]:
        """Return a short row of tokens for checks; none is 0, which may be padding with a zero embedding."""
        return 1 + torch.arange(_PROBE_LENGTH, device=self.device)[None] % 2

    @torch.no_grad()
    def twins(self) -> dict[str, str]:
        """Return hooks of block outputs -> that of the next block's input, if a short pass shows one tensor."""
        outputs: dict[int, tuple[Tensor, int]] = {}
        twins: dict[str, str] = {}

        def leaving(block: int, tensor: Tensor) -> None:
            outputs[block] = tensor, tensor._version

        def entering(block: int, tensor: Tensor) -> None:
            before, version = outputs.get(block - 1, (None, 0))
            if before is tensor and tensor._version == version:  # and not modified in between
                twins[f"blocks.{block - 1}.{RESID_POST}"] = f"blocks.{block}.{RESID_PRE}"

        watched = [
            (site, functools.partial(see, index))
            for index in range(len(self.blocks))
            for suffix, see in ((RESID_PRE, entering), (RESID_POST, leaving))
            if (site := self.sites.get(f"blocks.{index}.{suffix}"))
        ]
        self.short_pass(watched)
        return twins

    def short_pass(self, watched: Iterable[tuple[Site, Callable[[Tensor], Any]]]) -> Float[Tensor, "1 seq d_model"]:
        """Run a pass over a short row, perhaps on the meta device, in which functions see the tensors of sites."""
        tokens = torch.zeros((1, _PROBE_LENGTH), dtype=torch.long, device=self.device)
        mask = torch.ones_like(tokens, device=self._mask_device)
        with self.evaluating(), ExitStack() as stack:
            for site, see in watched:
                stack.callback(site.watch(see).remove)
            return self._forward(tokens, attention_mask=mask)

    @functools.cached_property
    def _mask_device(self) -> torch.device:
        """The device of the mask of a short pass: on the meta device, some models need the values of the mask."""
        if self.device.type != "meta":
            return self.device
        self._mask_device = torch.device("cpu")
        try:
            self.short_pass([])
        except Exception:
            return self.device
        return self._mask_device

    @torch.no_grad()
    def short_activations(self) -> dict[str, Tensor]:
        """Return the tensor of each site that has one floating-point `[batch, seq, ...]` tensor in a short pass.

        The tensors of TransformerLens' sites may also be `[batch * seq, d]`.
        """
        seen: dict[str, list[Tensor]] = {name: [] for name in self.sites}
        outputs: list[Tensor] = []

        def keep(name: str, tensor: Tensor) -> None:
            seen[name].append(tensor.clone())  # some models write into outputs

        watched: list[tuple[Site, Callable[[Tensor], Any]]] = [
            (site, functools.partial(keep, name)) for name, site in self.sites.items()
        ]
        final = (site for site in self.sites.values() if site.rest is not None)
        watched += [(Site(site.norm or site.module, "out", site.block), outputs.append) for site in final]
        state = self.short_pass(watched)
        # The unembedding must follow the last norm directly; some models scale or project the state in between.
        last = any(_whole(tensor) is _whole(state) and tensor.shape == state.shape for tensor in outputs)
        activations: dict[str, Tensor] = {}
        for name, tensors in seen.items():
            if len(tensors) != 1 or (self.sites[name].rest is not None and not last):
                continue
            tensor = tensors[0][None] if self.sites[name].suffix and tensors[0].ndim == 2 else tensors[0]
            # Integers are not activations, but indices, such as those of experts.
            if tensor.ndim > 2 and tensor.shape[:2] == (1, _PROBE_LENGTH) and tensor.is_floating_point():
                activations[name] = tensor.flatten(2)
        return activations

    def widths(self) -> dict[str, int]:
        """Return the width of each site at which there are activations."""
        return {name: tensor.shape[-1] for name, tensor in self.short_activations().items()}


def normalized(norm: nn.Module, args: tuple[Any, ...], unit: float) -> Float[Tensor, "batch seq d_model"]:
    """Return a norm's output before its gain and bias.

    `unit` is the weight for a gain of 1: 1, or 0 for norms that store the gain minus 1. The norm's own code computes
    the output, with neutral parameters and without its hooks.
    """
    neutral = copy.copy(norm)
    neutral._parameters = dict.fromkeys(norm._parameters)
    for name, value in norm._parameters.items():
        if value is not None:
            same = torch.full_like(value, unit if name == "weight" else 0)
            neutral._parameters[name] = nn.Parameter(same, requires_grad=False)
    return neutral.forward(*args)  # type: ignore[no-any-return]


def gain_unit(norm: nn.Module) -> float | None:
    """Return the weight for which a norm's gain is 1; None if gain and bias do not follow from its parameters."""
    generator = torch.Generator().manual_seed(0)
    known, weight = copy.copy(norm), norm._parameters.get("weight")
    if weight is None or weight.ndim != 1:
        return None
    known._parameters = {
        name: None if p is None else nn.Parameter(0.5 + torch.rand(p.shape, generator=generator), requires_grad=False)
        for name, p in norm._parameters.items()
    }
    x = torch.randn((3, len(weight)), generator=generator)
    with torch.device("cpu"), torch.no_grad():
        expected = known.forward(x)
        for unit in (1.0, 0.0):
            if torch.allclose(with_gain(known, normalized(known, (x,), unit), unit), expected, rtol=1e-4, atol=1e-4):
                return unit
    return None


def with_gain(norm: nn.Module, value: Float[Tensor, "batch seq d_model"], unit: float) -> Tensor:
    """Return the norm's output from `value`, its output before gain and bias."""
    parameters = {name: p for name, p in norm._parameters.items() if p is not None}
    weight = parameters["weight"]
    wide = torch.promote_types(weight.dtype, torch.float32)
    output = value.to(wide) * (weight.to(wide) + (1 - unit))
    if "bias" in parameters:
        output = output + parameters["bias"].to(wide)
    return output.to(value.dtype)
