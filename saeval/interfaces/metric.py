"""`Metric`: observe each batch, sum the evidence, conclude. Parameter names are requests for quantities."""

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

    - `conclude(self, total, ...)`: returns named values, computed from the summed evidence of all
      batches. Its other parameters name quantities that are not per-batch (`W_dec`, folds);
    - `observe(self, ...)`: returns the evidence of one batch (an `Evidence` or a dict of them). Its
      parameters name quantities (`feature_acts`, `mask`). Without it the metric causes no forward
      pass and `conclude` has no `total`;
    - `substitutes(self, ...)`: returns activations to splice in at the hook, keyed by the names in
      `interventions`. `observe` receives the outcomes as `substitute_scores`, `substitute_reward`
      and so on: dicts of `spliced_scores`, `spliced_reward`, by those names.
      Alternatively `interventions` maps each name to a function. Its parameters are requests, except
      those that a `functools.partial` fixes. A function that requests nothing of the SAE runs once
      for all SAEs at a hook, and metrics with equal functions and arguments share passes.

    At a hook of a suite's `hooks:`, where there is no SAE, a parameter of `observe` or `conclude` that
    needs one receives its default, and interventions that need one are left out. A metric with a request
    that needs an SAE and has no default does not run there.

    `__init__` is the schema of the YAML parameters. A metric keeps no state between calls: one
    object serves every batch and every SAE, and setting an attribute after `__init__` fails the cell.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    subject: ClassVar[Literal["sae", "group", "none"]] = "sae"
    """`group`: every per-hook or per-SAE quantity is a list in member order. `none`: the metric depends on model and
    data alone and is computed once."""
    data: ClassVar[Literal["stream", "pair"]] = "stream"
    """`pair`: every per-batch quantity is the list [chosen, rejected]."""
    headline: Sequence[str] = ()
    """Values that a printed table shows if the suite names no columns; if empty, all of them."""
    main: Sequence[str] | None = None
    """Values that a table too narrow for all its columns keeps before the others. None: the first of `headline`. Empty
    for a metric that describes rather than judges, such as `density`: the main values of other metrics come first."""
    value_names: Sequence[str] | None = None
    """Names of the `Scalar`s that `conclude` returns, or globs such as `dead@*`; set in `__init__` if they depend
    on parameters. The suite's columns and `precision:` are checked against them before a run; None: unchecked."""
    interventions: Sequence[str] | Mapping[str, Callable[..., Any]] = ()
    """Names of the substitutes that `substitutes` returns; declared, so that passes can be counted before the run.

    If it is a mapping, each name's function returns that substitute, and the metric has no `substitutes`.
    """
    truth: ClassVar[bool] = False
    """True if it knows the true features of its data, so that `saeval certify` holds other metrics against it."""
    sampled_scores: bool = False
    """True if its values are means of scores over the scores' own `mask`, so that a suite may set `score_share`."""

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        """Return the floating-point operations that `conclude` takes, for the time estimate of `saeval check`.

        `subjects` are those of one cell, in member order, with their widths `d_in`, `d_sae` and `d_out` if known;
        `tokens` is the number of tokens in the planned rows. Return 0 if the time is negligible. Count work other
        than matrix products as the operations that a matrix product does in the same time.
        """
        return 0.0

    def remarks(self, subjects: Sequence[Subject]) -> Sequence[str]:
        """Return sentences on what the values of one cell will lack, which `saeval check` and `run` print as warnings.

        `subjects` are as for `operations`.
        """
        return ()


def faults(metric: type[Metric]) -> str | None:
    """Return a sentence on why a class is not a valid metric; None if it is valid."""
    name = getattr(metric, "name", None)
    if not isinstance(name, str) or not name or "." in name:
        return f"'name' is {name!r}; it must be text without dots"
    if not isinstance(metric.version, int):
        return f"'version' is {metric.version!r}; it must be a whole number"
    if not callable(getattr(metric, "conclude", None)):
        return "it has no method 'conclude'"
    if isinstance(metric.headline, str):
        return f"'headline' is {metric.headline!r}; it must be a list of names of values"
    if isinstance(metric.main, str):
        return f"'main' is {metric.main!r}; it must be a list of names of values"
    if isinstance(metric.value_names, str):
        return f"'value_names' is {metric.value_names!r}; it must be a list of names of values"
    if metric.subject not in ("sae", "group", "none") or metric.data not in ("stream", "pair"):
        got = f"'subject' is {metric.subject!r}, 'data' is {metric.data!r}"
        return f"{got}; expected 'sae', 'group' or 'none', and 'stream' or 'pair'"
    if callable(getattr(metric, "observe", None)) and not list(inspect.signature(metric.conclude).parameters)[1:]:  # type: ignore[attr-defined]
        return "it has 'observe', so 'conclude' must take the total"
    return None


def undeclared(metric: Metric, concluded: Collection[Collection[str]]) -> str | None:
    """Return a sentence on how `value_names` and the scalars of the results disagree; None if they agree.

    `concluded` has the scalar names of each result. A declared name may be absent from some results, but not from all.
    """
    declared, returned = metric.value_names, {name for names in concluded for name in names}
    if declared is None or not concluded:
        return None
    undeclared_names = sorted(name for name in returned if not declares(declared, name))
    if undeclared_names:
        return f"{metric.name}.value_names lacks {', '.join(undeclared_names)}, which it concludes; add the names"
    absent = [name for name in declared if not names_matching(name, returned)]
    return f"{metric.name}.value_names has {', '.join(absent)}, which it never concludes" if absent else None


def names_of_values(metric: type[Metric]) -> Sequence[str] | None:
    """Return a metric's `value_names` at its default parameters; None if it declares none or needs parameters."""
    try:
        return metric().value_names
    except Exception:  # a plugin's constructor, perhaps with required parameters
        return None if isinstance(metric.value_names, property) else metric.value_names


def declares(declared: Iterable[str], name: str) -> bool:
    """Return True if the name matches one of the declared names or globs."""
    return any(names_matching(pattern, [name]) for pattern in declared)


def requested(metric: Metric | type[Metric], method: Literal["observe", "substitutes", "conclude"]) -> list[str]:
    """Return the names that a method requests, without the metric's total; empty if the metric has no such method."""
    function = getattr(metric, method, None)
    names = list(parameter_names(function)) if function else []
    return names[1:] if method == "conclude" and hasattr(metric, "observe") else names
