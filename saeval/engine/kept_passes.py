"""`KeptPasses`: what calls of `evaluate` on the same model and rows keep for each other."""

from __future__ import annotations

import hashlib
import logging
import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval.base.errors import SaevalError, shown
from saeval.base.lazy_torch import is_tensor, torch
from saeval.engine.batch_program import BatchProgram
from saeval.engine.model_proof import Causality, Proof
from saeval.interfaces.data import Batch, PairBatch
from saeval.interfaces.live_objects import LiveKeys
from saeval.interfaces.model import Capture
from saeval.plan.leaves import Leaf, resume
from saeval.plan.nodes import Node, closure
from saeval.registry.discovery import Plugins

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("saeval")
_PLAIN = (int, float, str, bytes, type(None))


@dataclass
class KeptBatch:
    """What is kept of one batch."""

    captures: dict[int, tuple[Capture, frozenset[str]]] = field(default_factory=dict)
    """Clean passes by side, each with the hooks from which it can be resumed."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values that do not depend on an SAE, by the digests of their nodes."""
    size: int = 0
    """Bytes of its tensors."""


class KeptPasses:
    """Lets later calls of `saeval.evaluate` use the clean passes of earlier ones, as in a training loop.

    Pass the same object to each call, `evaluate(..., kept=kept)`. The first call keeps, per batch, the model's clean
    pass and the scores of ablations, and the results of controls and of registered SAEs. Later calls on the same model
    and rows then run the model only with the new SAEs spliced in. The numbers are those of a call without it.

    `gib` bounds the memory of the kept passes, on the model's device; batches beyond it are computed in each call.
    If the model is another object, or a weight of it was written since, everything is dropped and kept anew. A change
    that no weight shows, such as a hook that you add to the model, needs a new `KeptPasses`. `SaevalError` if `gib` is
    no number of 0 or more.
    """

    def __init__(self, gib: float = 2.0) -> None:
        if isinstance(gib, bool) or not isinstance(gib, int | float) or not gib >= 0:
            raise SaevalError(f"KeptPasses: gib is a number of 0 or more, such as gib=2.0; got {shown(gib)}")
        self._most = gib * 2**30
        self._model: Any = None
        self._state: tuple[Any, ...] = ()
        self._remove: Callable[[], object] = bool
        self._drop()

    def _drop(self) -> None:
        self.keys = LiveKeys.of_call(None)
        """The keys of the model and of metric classes, which are the same in every call."""
        self._batches: dict[bytes, KeptBatch] = {}
        self.causality: Causality | None = None
        """The proof that the model is causal, once a call has it."""
        self.proofs: dict[str, Proof] = {}
        """The proofs of resumes, by hook."""
        self._classes: list[type] = []
        self._remove()
        self.folder = Path(mkdtemp(prefix="saeval-kept-"))
        """The folder of the results and folds that no live SAE changes; it is removed with this object."""
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @cached_property
    def plugins(self) -> Plugins:
        """The installed plugins, which a call need not look for again."""
        return Plugins()

    @property
    def size(self) -> int:
        """Bytes of the kept tensors."""
        return sum(batch.size for batch in self._batches.values())

    def begin(self, model: Any, classes: Iterable[type]) -> None:
        """Begin a call: drop everything if the model has changed. Keeps `classes` alive, whose `id` is in keys."""
        state = _state_of(model)
        if model is not self._model or state != self._state:
            if self._model is not None:
                log.warning("the model has changed since the last call: its kept passes are dropped")
                self._drop()
            self._model, self._state = model, state
        self._classes += [cls for cls in classes if all(cls is not kept for kept in self._classes)]

    def key_of_class(self, cls: type) -> str:
        """Return the key of a metric class."""
        return self.keys.of("metric", cls.__qualname__, id(cls))

    def batch(self, batch: Batch | PairBatch) -> KeptBatch:
        """Return what is kept of a batch with these rows."""
        return self._batches.setdefault(_rows(batch), KeptBatch())

    def drop(self, batch: Batch | PairBatch) -> None:
        """Forget a batch, such as one whose values something wrote into."""
        self._batches.pop(_rows(batch), None)

    def capture(self, kept: KeptBatch, side: int, needed: BatchProgram) -> Capture | None:
        """Return the kept clean pass of a side if it has all that is needed; else None."""
        captured, resumable = kept.captures.get(side, (None, frozenset()))
        if captured is None or not (
            captured.activations.keys() >= {*needed.hooks} and resumable >= {*needed.resumable}
        ):
            return None
        if needed.final and captured.final is None:
            return None
        return Capture(dict(captured.activations), captured.final, dict(captured.inputs))

    def keep_capture(self, kept: KeptBatch, side: int, captured: Capture, needed: BatchProgram) -> None:
        """Keep the clean pass of a side, if there is room."""
        copy = Capture(dict(captured.activations), captured.final, dict(captured.inputs))
        if self._has_room(kept, copy):
            kept.captures[side] = copy, frozenset(needed.resumable)

    def keep(self, kept: KeptBatch, node: Node, value: Any) -> None:
        """Keep the value of a node, if there is room and it consists of tensors and plain data."""
        if node.digest not in kept.values and self._has_room(kept, value):
            kept.values[node.digest] = value

    def _has_room(self, kept: KeptBatch, value: Any) -> bool:
        tensors = _tensors(value)
        if tensors is None or any(tensor.requires_grad for tensor in tensors):
            return False
        size = sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
        if self.size + size > self._most:
            return False
        kept.size += size
        return True


def frontier(program: BatchProgram, passing: frozenset[str]) -> dict[int, Node]:
    """Return the nodes to keep, by serial: scores and resumes that depend on no passing SAE, for those that do."""
    lasting = {serial: _lasts(node, passing) for serial, node in program.nodes.items()}
    used = [n for serial, node in program.nodes.items() if not lasting[serial] for n in node.inputs]
    for summation in program.summations:
        if not all(lasting.get(node.serial, True) for node in summation.reached()):
            used += summation.nodes()
    return {n.serial: n for n in used if lasting.get(n.serial) and _runs_the_model(n)}


def _lasts(node: Node, passing: frozenset[str]) -> bool:
    return not any(n.quantity.identity in passing for n in closure([node]).values())


def _runs_the_model(node: Node) -> bool:
    if not {"model", "batch"} <= node.roots or isinstance(node.quantity, Leaf):
        return False
    return bool(node.quantity.gathered) or any(n.quantity is resume for n in closure([node]).values())


def _rows(batch: Batch | PairBatch) -> bytes:
    """Return a hash of what tells a batch from others of the same data."""
    digest = hashlib.sha256()
    for side in batch.sides if isinstance(batch, PairBatch) else (batch,):
        arrays = [x.cpu().numpy() for x in (side.tokens, side.real, side.mask)]
        for array in (*arrays, np.asarray(side.sequence_ids)):
            digest.update(repr((array.shape, array.dtype)).encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _tensors(value: Any) -> list[Tensor] | None:
    """Return the tensors in a value; None if it holds anything but tensors and plain data."""
    if is_tensor(value):
        return [value]
    if isinstance(value, _PLAIN):
        return []
    if is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, f.name) for f in fields(value)]
    elif isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        return None
    inside = [_tensors(part) for part in parts]
    return None if any(part is None for part in inside) else [t for part in inside for t in part or ()]


def _state_of(model: Any) -> tuple[Any, ...]:
    """Return what changes when something writes into a weight of a torch module; empty for any other model."""
    if not isinstance(model, torch.nn.Module):
        return ()
    return tuple((id(tensor), tensor._version) for tensor in (*model.parameters(), *model.buffers()))
