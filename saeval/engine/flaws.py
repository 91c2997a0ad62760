"""Flaws: values that are NaN or infinite inside the mask. The engine counts them, since comparisons would hide them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool

from saeval.base.lazy_torch import is_tensor, torch
from saeval.plan.leaves import activations
from saeval.plan.nodes import Node, closure

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Flaw:
    """Number of tokens of the mask whose value is not finite; of texts, for a value per text."""

    count: int
    per: str
    """`tokens` or `texts`."""

    def __add__(self, other: Flaw) -> Flaw:
        return Flaw(self.count + other.count, self.per)


def flaw(value: Any, mask: Bool[Tensor, "batch seq"]) -> Flaw | None:
    """Return the flaw of a value in one batch; None if everything inside the mask is finite.

    Only floating-point tensors whose shape begins with that of the mask, or `[batch]`, count. Values outside the mask
    are never read.
    """
    flawed: dict[str, Tensor] = {}
    for tensor in _floats(value):
        if tensor.shape[:2] == mask.shape:
            per, bad = "tokens", _not_finite(tensor, mask)
        elif tensor.shape == mask.shape[:1]:
            per, bad = "texts", ~tensor.isfinite()
        else:
            continue
        if bad is not None:
            flawed[per] = flawed[per] | bad.to(mask.device) if per in flawed else bad.to(mask.device)
    for per, bad in flawed.items():
        if count := int(bad.sum()):
            return Flaw(count, per)
    return None


def _not_finite(x: Tensor, mask: Tensor) -> Tensor | None:
    """Return the tokens of the mask whose value is not finite, as a mask; None if there are none."""
    inside = mask.to(x.device)
    # A sum per token reads the tensor once and writes little. A sum may also overflow, so the values decide.
    sums = x.flatten(2).sum(-1, dtype=torch.promote_types(x.dtype, torch.float32)) if x.ndim > 2 else x
    doubtful = ~sums.isfinite() & inside
    if not bool(doubtful.any()):
        return None
    bad = torch.zeros_like(doubtful)
    bad[doubtful] = ~x[doubtful].isfinite().flatten(1).all(1) if x.ndim > 2 else True
    return bad


def _floats(value: Any) -> Iterator[Tensor]:
    if is_tensor(value):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _floats(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _floats(getattr(value, field.name))


def described(
    reached: Sequence[Node], flaws: Mapping[str, Flaw], counts: Mapping[str, int], split: str = "", own: str = ""
) -> str | None:
    """Return a sentence about the earliest flaw among the nodes `reached`; None without one.

    `flaws` are those of a pass, by node digest, `counts` its numbers of tokens and texts, and `split` names their
    split. `own` is the single subject of a cell, which the sentence need not name.
    """
    flawed = sorted((n for n in reached if n.digest in flaws), key=lambda n: n.serial)
    if not flawed:
        return None
    first = flawed[0]
    name, subject = _names(first, flaws)
    alike = (n for n in reversed(flawed) if n.name == first.name and _names(n, flaws) == (name, subject))
    sides = {n.side: flaws[n.digest].count for n in alike}  # for pairs the earliest flaw of each side
    count, per = sum(sides.values()), flaws[first.digest].per
    shown = "" if subject in ("", own) else f" ('{subject}')"
    return f"NaN or infinite values in the {name} of {count} of {counts[per]} {per}{split}{shown}"


def _names(node: Node, flaws: Mapping[str, Flaw]) -> tuple[str, str]:
    """Return the name of a node's value in messages, and the name of the substitute that it depends on, if just one."""
    before = closure([node], beyond=lambda n: not n.subject and not n.quantity.fold)
    subjects = {n.subject for n in before.values() if n.subject}
    where = f" at {node.hook_name}" if node.quantity is activations else ""
    name = node.quantity.finite
    if flaws[node.digest].per == "texts":  # the final state of a reward model
        name = name.replace("final state", "reward")
    return f"{name}{where}", subjects.pop() if len(subjects) == 1 else ""
