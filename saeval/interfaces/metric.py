"""`Metric`: observe a batch, sum, conclude. It says what it wants by the names of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from saeval.base.names import names_matching
from saeval.base.parameters import parameter_names
from saeval.base.stateless import Stateless

if TYPE_CHECKING:
    from saeval.interfaces.substitute import Subject


class Metric(Stateless):
    """Base class of all metrics.

    Subclasses set `name` and `version` and define

    - `conclude(self, total, ...)`: named values from the sum of all batches' evidence; its other
      parameters name quantities that belong to no batch (`W_dec`, folds);
    - `observe(self, ...)`: the evidence of one batch (an `Evidence` or a dict of them); its
      parameters name quantities (`feature_acts`, `mask`). Without it no forward pass is made for
      this metric and `conclude` has no `total`;
    - `substitutes(self, ...)`: activations to put in the hook's place, by the names that
      `interventions` declares; `observe` gets what comes of each as `substitute_scores`,
      `substitute_reward` and so on: a dict of `spliced_scores`, `spliced_reward`, by those names.
      `interventions` may instead map each name to a function (its parameters are requests, what a
      `functools.partial` fixes is not): one that asks for nothing of the SAE runs once for all SAEs
      of a hook, and metrics whose functions and arguments are equal share the passes.

    `__init__` is the schema of the parameters a suite may set. A metric keeps no state between calls: one object
    serves every batch and every SAE, and setting an attribute after `__init__` fails the cell.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    subject: ClassVar[Literal["sae", "group", "none"]] = "sae"
    """`group`: everything that belongs to a hook or an SAE comes as a list in member order; `none`: the metric is
    about model and data alone, computed once."""
    data: ClassVar[Literal["stream", "pair"]] = "stream"
    """`pair`: everything that belongs to a batch comes as the list [chosen, rejected]."""
    headline: Sequence[str] = ()
    """The values that a printed table shows where its suite names no columns; none named: all of them."""
    value_names: Sequence[str] | None = None
    """The names of the `Scalar`s that `conclude` gives, or globs such as `dead@*`; set in `__init__` where they
    depend on parameters. A suite's columns and `precision:` are checked against them before a run; None: unchecked."""
    interventions: Sequence[str] | Mapping[str, Callable[..., Any]] = ()
    """Names of the substitutes that `substitutes` returns; known before the run, so that passes can be counted.

    As a mapping, each name's function makes that substitute by itself, and there is no `substitutes`.
    """

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        """Arithmetic operations that `conclude` takes beyond the passes, for the time that `saeval check` foretells.

        `subjects` are those of one cell, in member order, with the widths `d_in`, `d_sae` and `d_out` where they are
        known; `tokens` is how many the planned rows have. 0 for a conclusion that takes no time to speak of. What is
        no matrix product counts as the operations that a matrix product does in that time.
        """
        return 0.0


def faults(metric: type[Metric]) -> str | None:
    """Why a class is no usable metric, in a sentence; None for a sound one."""
    name = getattr(metric, "name", None)
    if not isinstance(name, str) or not name or "." in name:
        return f"'name' is {name!r}; it must be text without dots"
    if not isinstance(metric.version, int):
        return f"'version' is {metric.version!r}; it must be a whole number"
    if not callable(getattr(metric, "conclude", None)):
        return "it has no method 'conclude'"
    if isinstance(metric.headline, str):
        return f"'headline' is {metric.headline!r}; it must be a list of names of values"
    if isinstance(metric.value_names, str):
        return f"'value_names' is {metric.value_names!r}; it must be a list of names of values"
    if metric.subject not in ("sae", "group", "none") or metric.data not in ("stream", "pair"):
        found = f"'subject' is {metric.subject!r}, 'data' is {metric.data!r}"
        return f"{found}; expected 'sae', 'group' or 'none', and 'stream' or 'pair'"
    if callable(getattr(metric, "observe", None)) and not list(inspect.signature(metric.conclude).parameters)[1:]:  # type: ignore[attr-defined]
        return "it has 'observe', so 'conclude' must take the total"
    return None


def undeclared(metric: Metric, concluded: Collection[Collection[str]]) -> str | None:
    """Where `value_names` and the names of the scalars of its results disagree, in a sentence; None where they agree.

    `concluded` has the names of each result. A declared name may be absent from some of them, but not from all.
    """
    declared, given = metric.value_names, {name for names in concluded for name in names}
    if declared is None or not concluded:
        return None
    unknown = sorted(name for name in given if not declares(declared, name))
    if unknown:
        return f"{metric.name}.value_names lacks {', '.join(unknown)}, which it concludes; add the names"
    absent = [name for name in declared if not names_matching(name, given)]
    return f"{metric.name}.value_names has {', '.join(absent)}, which it never concludes" if absent else None


def names_of_values(metric: type[Metric]) -> Sequence[str] | None:
    """The `value_names` that a metric has by default; None where it declares none or needs parameters."""
    try:
        return metric().value_names
    except Exception:  # a plugin's own constructor, asked without what it may need
        return None if isinstance(metric.value_names, property) else metric.value_names


def declares(declared: Iterable[str], name: str) -> bool:
    """Whether a value is one of those that a metric declares."""
    return any(names_matching(pattern, [name]) for pattern in declared)


def observe_requests(metric: Metric) -> list[str]:
    """What `observe` asks for; empty for a metric that sees no batch."""
    method = getattr(metric, "observe", None)
    return list(parameter_names(method)) if method else []


def substitute_requests(metric: Metric) -> list[str]:
    """What `substitutes` asks for."""
    method = getattr(metric, "substitutes", None)
    return list(parameter_names(method)) if method else []


def conclude_requests(metric: Metric) -> list[str]:
    """What `conclude` asks for beside the metric's own total."""
    method: Callable[..., Any] = metric.conclude  # type: ignore[attr-defined]
    return list(parameter_names(method))[1 if hasattr(metric, "observe") else 0 :]
