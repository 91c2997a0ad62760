"""The modules at TransformerLens' hooks in the blocks of a model, by the graph of one short forward pass."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from saeval_models.families import (
    ATTN_OUT,
    BOUNDARIES,
    MLP_BRANCH,
    MLP_IN,
    MLP_NORMALIZED,
    MLP_OUT,
    MLP_POST,
    RESID_MID,
    End,
    Family,
    ModuleEnd,
    NoGraph,
    Z,
)
from saeval_models.hooked import Site, gain_unit

_Node = tuple[Any, int]
"""A tensor of the pass: an autograd node and the index of its output."""
_Watched = tuple[Site, Callable[[Tensor], Tensor | None]]
_Sites = dict[str, tuple[ModuleEnd, ...]]
_SAME = {f"{name}Backward0" for name in ("View", "UnsafeView", "ReshapeAlias", "Clone", "ToCopy", "Alias")}
"""Operations whose output has the values of their input."""
_ATTENTION = re.compile(r"(?<!linear_)attn|(?<!Linear)(?<!linear_)attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|feed_?forward|ffn|moe|^fc\d|^intermediate", re.IGNORECASE)


def parts_of(block: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a block by path; a compiled module, `mlp._orig_mod`, is `mlp`."""
    return {f".{path}".replace("._orig_mod", "")[1:]: part for path, part in block.named_modules()}


def with_sites(family: Family, blocks: Iterable[nn.Module], run: Callable[[list[_Watched]], object]) -> Family:
    """Return the family with the sites inside its blocks that the graph of `run`, a forward pass, proves.

    Each block's output must be the sum of its input and of other terms. A term that attention or an MLP computes is
    `hook_attn_out` or `hook_mlp_out` if it is the output of a module; the other sites follow from these two. The pass
    may be on the meta device, because a graph has no values. Raises `NoGraph` if the pass fails.
    """
    graphs = [_Block(parts_of(block)) for block in blocks]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            run([pair for index, graph in enumerate(graphs) for pair in graph.watched(index)])
    except Exception as error:  # a pass that needs values
        raise NoGraph(family) from error
    by_block = [graph.sites() for graph in graphs]
    sites: _Sites = {}
    for suffix in dict.fromkeys(suffix for own in by_block for suffix in own):
        places = dict.fromkeys(place for own in by_block for place in own.get(suffix, ()))
        # In models with blocks of several kinds, a path may be another site in another block.
        agreed = (p for p in places if all(g.agrees(f, suffix, p) for g, f in zip(graphs, by_block, strict=True)))
        if kept := tuple(agreed):
            sites[suffix] = kept
    units = {unit for graph in graphs for unit in graph.units}
    scales = {scale for graph in graphs for scale in graph.scales}
    if len(scales) > 1:
        return family
    entries = {graph.ends.get(("", "in")) for graph in graphs}
    if any(len(graph.whole() & entries) > 1 for graph in graphs):
        # Later blocks read keys and values of an earlier one, which a resume from its middle would change.
        sites.pop(RESID_MID, None)
    if len(units) != 1:
        sites.pop(MLP_NORMALIZED, None)
    # A place with two names has the first: the input of an MLP without a norm is also the stream in the middle.
    order = (MLP_BRANCH, MLP_NORMALIZED, ATTN_OUT, MLP_OUT, Z, MLP_IN, MLP_POST, RESID_MID)
    ordered = {suffix: sites[suffix] for suffix in order if suffix in sites}
    unit, scale = min(units, default=1.0), min(scales, default=1.0)
    return replace(family, sites={**BOUNDARIES, **ordered}, unit=unit, scale=scale)


class _Block:
    """The graph of one block."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.parts = {path: part for path, part in parts.items() if not isinstance(part, nn.Dropout | nn.Identity)}
        self.units: set[float] = set()
        """The weight for a gain of 1 of the norms at `ln2.hook_normalized`."""
        self.scales: set[float] = set()
        """The factors between modules and the residual stream."""
        self.seen: dict[ModuleEnd, list[_Node | None]] = {}
        self.ends: dict[ModuleEnd, _Node] = {}
        self.entries: dict[str, _Node] = {}
        """The copies of the input that each module reads, by path."""
        self.spine: dict[_Node, list[_Node]] = {}
        """The states of the residual stream after its first, each with the terms that were added to the first."""

    def watched(self, index: int) -> list[_Watched]:
        """Return functions that note the tensors at both ends of each module; the block's input becomes a leaf."""

        def note(place: ModuleEnd, tensor: Tensor) -> Tensor | None:
            if place == ("", "in"):
                tensor = tensor.detach().requires_grad_()
            if place[1] == "in" and tensor.requires_grad:
                tensor = tensor.clone()  # a node of its own
                self.entries[place[0]] = tensor.grad_fn, 0
            self.seen.setdefault(place, []).append(_node(tensor))
            return tensor if place[1] == "in" else None

        ends: tuple[End, ...] = ("in", "out")
        parts = self.parts.items()
        return [(Site(part, end, index), functools.partial(note, (path, end))) for path, part in parts for end in ends]

    def agrees(self, sites: _Sites, suffix: str, place: ModuleEnd) -> bool:
        """True unless a place is here and is not this site."""
        no_attention = suffix == RESID_MID and ATTN_OUT not in sites
        return place in sites.get(suffix, ()) or place not in self.seen or no_attention

    def sites(self) -> _Sites:
        # A module that runs twice, such as a shared activation function, is no place of one tensor.
        self.ends = {place: nodes[0] for place, nodes in self.seen.items() if len(nodes) == 1 and nodes[0] is not None}
        if ("", "in") not in self.ends or ("", "out") not in self.ends:
            return {}
        for after_norms in (False, True):
            self.spine = {}
            if (terms := self._terms(self.ends["", "out"], after_norms)) is not None:
                break
        else:
            return {}
        cones = {term: self._cone(term) for term in terms}
        attention = [term for term in terms if self._has(cones[term], _ATTENTION)]
        mlp = [term for term in terms if term not in attention and self._has(cones[term], _MLP)]
        sites: _Sites = {}
        if len(attention) == 1:
            sites |= self._branch(attention[0], ATTN_OUT, Z)
        if len(mlp) == 1:
            sites |= self._branch(mlp[0], MLP_OUT, MLP_POST)
            sites |= self._before_mlp(mlp[0], set().union(*(cones[term] for term in terms if term != mlp[0])))
        if ATTN_OUT in sites and not after_norms:
            middle = [place for place in self._places("in") if self.spine.get(self.ends[place]) == attention]
            sites |= {RESID_MID: (middle[0],)} if middle else {}
        return sites

    def _places(self, end: End, node: _Node | None = None) -> list[ModuleEnd]:
        """Return the ends of modules, outer modules first; with a node, those with this tensor."""
        places: list[ModuleEnd] = [(path, end) for path in self.parts if path and (path, end) in self.ends]
        return places if node is None else [place for place in places if self.ends[place] == node]

    def _is_norm(self, place: ModuleEnd) -> bool:
        return "norm" in type(self.parts[place[0]]).__name__.lower()

    def _terms(self, node: _Node, after_norms: bool) -> list[_Node] | None:
        """Return the terms that were added to the block's input to get this tensor; None if it is no such sum.

        `after_norms` allows for norms that change the stream itself, as in GPT.
        """
        if node == self.ends["", "in"]:
            return []
        kind, inputs = node[0].name(), _inputs(node)
        norm = next(filter(self._is_norm, self._places("out", node)), None)
        if after_norms and norm is not None:
            inputs = [self.ends[norm[0], "in"]]
        elif kind not in ("AddBackward0", "MulBackward0", "DivBackward0") or (kind[0] != "A" and len(inputs) > 1):
            return None
        streams = [self._terms(each, after_norms) for each in inputs]
        if all(terms is None for terms in streams):
            return None
        parts = [self._split(i) if terms is None else terms for i, terms in zip(inputs, streams, strict=True)]
        self.spine[node] = [term for part in parts for term in part]
        return self.spine[node]

    def _split(self, node: _Node) -> list[_Node]:
        """Return the terms of a sum of branches, unless it is a module's output, or adds a bias to a branch."""
        if node[0].name() != "AddBackward0" or self._places("out", node):
            return [node]
        if any(not any(map(self._in_stream, self._cone(each))) for each in _inputs(node)):
            return [node]
        return [term for each in _inputs(node) for term in self._split(each)]

    def _cone(self, node: _Node, *stops: _Node) -> set[_Node]:
        """Return the tensors from which a tensor is computed, back to the residual stream or to `stops`."""
        cone: set[_Node] = set()
        pending = [node]
        while pending:
            each = pending.pop()
            if each not in cone:
                cone.add(each)
                pending += [] if self._in_stream(each) or each in stops else _before(each)
        return cone

    def whole(self) -> set[_Node]:
        """Return all tensors from which the block's output is computed."""
        self.spine = {}
        return self._cone(self.ends["", "out"]) if ("", "out") in self.ends else set()

    def _in_stream(self, node: _Node) -> bool:
        return node in self.spine or node == self.ends["", "in"]

    def _has(self, cone: set[_Node], names: re.Pattern[str]) -> bool:
        """True if a module of such a name or class computes one of the tensors; norms are not asked."""
        return any(
            names.search(place[0]) or names.search(type(self.parts[place[0]]).__name__)
            for place in self._places("out")
            if self.ends[place] in cone and not self._in_stream(self.ends[place]) and not self._is_norm(place)
        )

    def _branch(self, term: _Node, out: str, last: str) -> _Sites:
        """Return the sites of a branch's output and of the input of its last projection."""
        scale = 1.0
        while not (places := self._places("out", term)):
            kind, inputs = term[0].name(), _inputs(term)
            factor = getattr(term[0], "_saved_other", None) if kind in ("MulBackward0", "DivBackward0") else None
            if len(inputs) != 1 or factor is None or factor.ndim or factor.is_meta:
                return {}
            scale = scale * float(factor) if kind[0] == "M" else scale / float(factor)
            term = inputs[0]
        self.scales.add(scale)
        sites: _Sites = {out: tuple(places) if scale == 1 else ((places[0][0], "scaled"),)}
        if self._is_norm(places[0]):
            places = self._places("out", self.ends.get((places[0][0], "in"), term))
        weights = [getattr(self.parts[path], "weight", None) for path, _ in places]
        if places and isinstance(weights[-1], Tensor) and weights[-1].ndim == 2 and (places[-1][0], "in") in self.ends:
            projection: ModuleEnd = (places[-1][0], "in")
            same = self._places("out", self.ends[projection]) if last == MLP_POST else []
            sites[last] = (projection, *same)
        return sites

    def _before_mlp(self, term: _Node, others: set[_Node]) -> _Sites:
        """Return the sites of the path into the MLP; `others` are the tensors of other branches."""
        cone = self._cone(term)
        norms = [
            place for place in filter(self._is_norm, self._places("out"))
            if self.ends[place] in cone and not self._in_stream(self.ends[place])
            and self._in_stream(self.ends.get((place[0], "in"), term))
        ]  # fmt: skip
        cone = self._cone(term, *(self.ends[norm] for norm in norms))
        starts = {node for node in cone if self._in_stream(node)} | {self.ends[norm] for norm in norms}
        if len(starts) != 1:
            return {}
        (start,) = starts
        sites: _Sites = {}
        own = bool(norms) and start not in others  # read by the MLP alone
        if own:
            path = norms[0][0]
            sites[MLP_BRANCH] = ((path, "in"),)
            if (unit := gain_unit(self.parts[path])) is not None:
                self.units.add(unit)
                sites[MLP_NORMALIZED] = ((path, "normalized"),)
        # Another module may read the tensor too: it is the MLP's input where all that is computed from it comes in.
        readers = [p for p in self._places("in", start) if start not in self._cone(term, self.entries[p[0]])]
        if readers:
            sites[MLP_IN] = (readers[0], *(norms if own else []), *readers[1:])
        return sites


def _node(tensor: Tensor) -> _Node | None:
    return None if tensor.grad_fn is None else _source((tensor.grad_fn, tensor.output_nr))


def _source(node: _Node) -> _Node:
    """Return the first tensor with the same values."""
    while node[0].name() in _SAME:
        node = node[0].next_functions[0]
    return node


def _before(node: _Node) -> list[_Node]:
    return [each for each in node[0].next_functions if each[0] is not None]


def _inputs(node: _Node) -> list[_Node]:
    return [_source(each) for each in _before(node)]
