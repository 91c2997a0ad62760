"""Capture and resume by torch hooks: one mechanism for every adapter."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeval.data import Batch
from saeval.live import evaluation_mode
from saeval.model import Capture, Model
from saeval_models.layouts import ATTN_OUT, RESID_MID, RESID_POST, RESID_PRE, End
from saeval_models.norms import normalized, scaled

_PROBE_LENGTH = 13  # unlike any plausible number of heads, so that only [batch, seq, ...] tensors pass for activations


class _Cut(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass whose wanted activations have all been seen."""


@dataclass(frozen=True)
class Site:
    """The place of a hook: an end of a module in a block."""

    module: nn.Module
    end: End
    block: int
    suffix: str = ""
    """The TransformerLens name within the block; empty for a site that has none."""
    unit: float = 1.0
    """Of a norm: the weight that means a gain of 1."""

    def watch(self, see: Callable[[Tensor], Tensor | None]) -> torch.utils.hooks.RemovableHandle:
        """Show the site's tensor to `see` in every forward pass; what it returns, unless None, takes its place."""

        def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            position = next((i for i, value in enumerate(args) if isinstance(value, Tensor)), None)
            if position is not None:
                new = see(args[position])
                return None if new is None else ((*args[:position], new, *args[position + 1 :]), kwargs)
            key = _hidden_key(kwargs)
            new = None if key is None else see(kwargs[key])
            return None if key is None or new is None else (args, {**kwargs, key: new})

        def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not isinstance(output, tuple):
                return see(output) if isinstance(output, Tensor) else None
            new = see(output[0])
            return None if new is None else (new, *output[1:])

        def normalizing(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
            # A bridge's component computes its norm itself, with the parameters of the module it stands for.
            norm = getattr(module, "original_component", None) or module
            new = see(normalized(norm, args, self.unit))
            return None if new is None else scaled(norm, new, self.unit)

        if self.end == "normalized":
            return self.module.register_forward_hook(normalizing)
        if self.end == "in":
            return self.module.register_forward_pre_hook(entering, with_kwargs=True)
        return self.module.register_forward_hook(leaving)


def _hidden_key(kwargs: Mapping[str, Any]) -> str | None:
    """The keyword that carries the hidden state; None where no argument is a tensor."""
    if "hidden_states" in kwargs:
        return "hidden_states"
    return next((key for key, value in kwargs.items() if isinstance(value, Tensor)), None)


class _Passed(nn.Module):
    """Stands where a block need not run: its output is given, every other attribute is the block's."""

    def __init__(self, block: nn.Module, output: Any) -> None:
        super().__init__()
        self.__dict__.update(_block=block, _output=output)  # past nn.Module, which would adopt the block as a child

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)


def _keep(kept: dict[Any, Tensor], name: str | int, tensor: Tensor) -> None:
    """A copy, since some models write into what a module gave; TransformerLens keeps the heads of hook_z apart."""
    kept[name] = tensor.flatten(2).clone()


class HookedModel(Model):
    """A torch model with a list of blocks and named sites inside them.

    `sites` maps canonical hook names to places. Every pass is one of evaluation mode, and leaves the
    modules as it found them.
    """

    def __init__(self, module: nn.Module, blocks: nn.ModuleList, sites: Mapping[str, Site]) -> None:
        self.module: Any = module
        self.blocks = blocks
        self.sites = sites
        self._tuple_length: int | None = None
        """Length of the tuple that a block returns, 0 for a bare tensor; None until a block has run."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return next(self.module.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return next(self.module.parameters()).dtype  # type: ignore[no-any-return]

    @abstractmethod
    def _forward(self, tokens: Int[Tensor, "batch seq"], **inputs: Any) -> Float[Tensor, "batch seq d_model"]:
        """A pass up to the state that the unembedding reads."""

    @abstractmethod
    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What `_forward` needs besides the tokens, for results that do not depend on padding.

        Asked before any hook is set, so it may run the model.
        """

    def _finish(self, hidden: Float[Tensor, "batch seq d_model"], batch: Batch) -> Tensor:
        return hidden

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, until the end, for whatever is in training mode."""
        with evaluation_mode(self.module.modules()):
            yield

    @torch.no_grad()
    def capture(self, batch: Batch, hooks: Iterable[str], final: bool, resumable: Iterable[str] = ()) -> Capture:
        captured = Capture({})
        wanted = {name: self.sites[name] for name in hooks}
        # Resuming inside a block runs the block again, so its input is kept.
        inner = {
            self.sites[n].block for n in resumable if self.sites[n].suffix not in (RESID_PRE, RESID_MID, RESID_POST)
        }
        pending: set[str | int] = {*wanted, *inner}
        if not pending and not final:
            return captured

        def keep(kept: dict[Any, Tensor], key: str | int) -> Callable[[Tensor], None]:
            def see(tensor: Tensor) -> None:
                _keep(kept, key, tensor)
                pending.discard(key)
                if not pending and not final:
                    raise _Cut

            return see

        with self.evaluating(), ExitStack() as stack:
            inputs = self._inputs(batch)
            if self._tuple_length is None:
                stack.callback(self.blocks[0].register_forward_hook(self._note_output).remove)
            for index in inner:
                stack.callback(Site(self.blocks[index], "in", index).watch(keep(captured.inputs, index)).remove)
            for name, site in wanted.items():
                stack.callback(site.watch(keep(captured.activations, name)).remove)
            with suppress(_Cut):
                captured.final = self._finish(self._forward(batch.tokens, **inputs), batch)
        return captured

    def resumed(
        self, batch: Batch, captured: Capture, hook_name: str, activations: Float[Tensor, "batch seq d"],
        hooks: Iterable[str] = (),
    ) -> Capture:  # fmt: skip
        site, found = self.sites[hook_name], Capture({})
        activations = activations.to(self.dtype)
        start, hidden, edited = site.block, activations, None
        if site.suffix == RESID_POST:
            start += 1
        elif site.suffix == RESID_MID:
            # A block adds its attention's output to its input: nought plus the activations is exact.
            hidden, edited = torch.zeros_like(activations), self.sites[f"blocks.{site.block}.{ATTN_OUT}"]
        elif site.suffix != RESID_PRE:
            hidden, edited = captured.inputs[site.block], site
        hidden = hidden.clone()  # the model may write into what it is given; so below
        with self.evaluating(), ExitStack() as stack:
            inputs = self._inputs(batch)
            self._start_at(start, hidden, stack)
            if edited is not None:
                stack.callback(edited.watch(lambda tensor: activations.reshape(tensor.shape).clone()).remove)
            for name in hooks:
                keep = functools.partial(_keep, found.activations, name)
                stack.callback(self.sites[name].watch(keep).remove)
            found.final = self._finish(self._forward(batch.tokens, **inputs), batch)
        return found

    def _start_at(self, start: int, hidden: Tensor, stack: ExitStack) -> None:
        """Until `stack` closes, blocks before `start` do not run and `hidden` is what enters block `start`."""
        if start == 0:
            stack.callback(Site(self.blocks[0], "in", 0).watch(lambda _: hidden).remove)
            return
        if self._tuple_length is None:
            raise RuntimeError("resume comes after a capture by the same model")
        output = (hidden, *[None] * (self._tuple_length - 1)) if self._tuple_length else hidden
        for index in range(start):
            block = self.blocks[index]
            stack.callback(self.blocks.__setitem__, index, block)
            self.blocks[index] = _Passed(block, output)

    def _note_output(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._tuple_length = len(output) if isinstance(output, tuple) else 0

    @torch.no_grad()
    def twins(self) -> dict[str, str]:
        """Names of block outputs -> the name of the next block's input, where a short pass shows one tensor."""
        left: dict[int, tuple[Tensor, int]] = {}
        found: dict[str, str] = {}

        def leaving(block: int) -> Callable[[Tensor], None]:
            return lambda tensor: left.__setitem__(block, (tensor, tensor._version))

        def entering(block: int) -> Callable[[Tensor], None]:
            def see(tensor: Tensor) -> None:
                before, version = left.get(block - 1, (None, 0))
                if before is tensor and tensor._version == version:  # nor was it written into between the two
                    found[f"blocks.{block - 1}.{RESID_POST}"] = f"blocks.{block}.{RESID_PRE}"

            return see

        tokens = torch.zeros((1, _PROBE_LENGTH), dtype=torch.long, device=self.device)
        with self.evaluating(), ExitStack() as stack:
            for index in range(len(self.blocks)):
                for suffix, see in ((RESID_PRE, entering), (RESID_POST, leaving)):
                    if site := self.sites.get(f"blocks.{index}.{suffix}"):
                        stack.callback(site.watch(see(index)).remove)
            self._forward(tokens, attention_mask=torch.ones_like(tokens))
        return found

    @torch.no_grad()
    def widths(self) -> dict[str, int]:
        """Width of every site that one short pass shows to hold one `[batch, seq, ...]` tensor."""
        shapes: dict[str, list[torch.Size]] = {name: [] for name in self.sites}

        def note(seen: list[torch.Size]) -> Callable[[Tensor], None]:
            return lambda tensor: seen.append(tensor.shape)

        tokens = torch.zeros((1, _PROBE_LENGTH), dtype=torch.long, device=self.device)
        with self.evaluating(), ExitStack() as stack:
            for name, site in self.sites.items():
                stack.callback(site.watch(note(shapes[name])).remove)
            self._forward(tokens, attention_mask=torch.ones_like(tokens))
        return {
            name: math.prod(seen[0][2:])
            for name, seen in shapes.items()
            if len(seen) == 1 and len(seen[0]) > 2 and seen[0][:2] == (1, _PROBE_LENGTH)
        }
