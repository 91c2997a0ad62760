"""Flaws: values that are NaN or infinite inside the mask. Comparisons hide them, so the engine counts them."""

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
    """How many tokens of the mask, or texts where a value is one a text, are not finite."""

    count: int
    per: str
    """`tokens` or `texts`."""

    def __add__(self, other: Flaw) -> Flaw:
        return Flaw(self.count + other.count, self.per)


def flaw(value: Any, mask: Bool[Tensor, "batch seq"]) -> Flaw | None:
    """The flaw of one batch's value: of its floating-point tensors that begin with the mask's shape, or `[batch]`.

    None where everything inside the mask is finite. What stands outside the mask is never looked at.
    """
    found: dict[str, Tensor] = {}
    for tensor in _floats(value):
        if tensor.shape[:2] == mask.shape:
            per, bad = "tokens", _not_finite(tensor, mask)
        elif tensor.shape == mask.shape[:1]:
            per, bad = "texts", ~tensor.isfinite()
        else:
            continue
        if bad is not None:
            found[per] = found[per] | bad.to(mask.device) if per in found else bad.to(mask.device)
    for per, bad in found.items():
        if count := int(bad.sum()):
            return Flaw(count, per)
    return None


def _not_finite(x: Tensor, mask: Tensor) -> Tensor | None:
    """Which tokens of the mask have a value that is not finite; None for no token."""
    inside = mask.to(x.device)
    # One sum a token reads the tensor once and writes little. A sum may also overflow: then the values decide.
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
        for one in value.values():
            yield from _floats(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _floats(getattr(value, field.name))


def described(
    reached: Sequence[Node], flaws: Mapping[str, Flaw], counts: Mapping[str, int], split: str = "", own: str = ""
) -> str | None:
    """The flaw that comes first on the way to what the nodes `reached` give, as a sentence; None without one.

    `flaws` are a pass's, by the nodes' digests, `counts` its tokens and texts, `split` what these are of. `own` is the
    one subject of a cell, which need not be named.
    """
    flawed = sorted((n for n in reached if n.digest in flaws), key=lambda n: n.serial)
    if not flawed:
        return None
    first = flawed[0]
    what, whose = _named(first, flaws)
    alike = (n for n in reversed(flawed) if n.name == first.name and _named(n, flaws) == (what, whose))
    sides = {n.side: flaws[n.digest].count for n in alike}  # of pairs both, and of each the earliest
    count, per = sum(sides.values()), flaws[first.digest].per
    shown = "" if whose in ("", own) else f" ('{whose}')"
    return f"NaN or infinite values in the {what} of {count} of {counts[per]} {per}{split}{shown}"


def _named(node: Node, flaws: Mapping[str, Flaw]) -> tuple[str, str]:
    """What a value is called, and the substitute that it is of, where it is one's."""
    before = closure([node], beyond=lambda n: not n.subject and not n.quantity.fold)
    subjects = {n.subject for n in before.values() if n.subject}
    where = f" at {node.hook_name}" if node.quantity is activations else ""
    what = node.quantity.finite
    if flaws[node.digest].per == "texts":  # the final state of a reward model
        what = what.replace("final state", "reward")
    return f"{what}{where}", subjects.pop() if len(subjects) == 1 else ""
