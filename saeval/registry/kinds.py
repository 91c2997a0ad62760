"""The kinds of named things that plugins supply: the table behind the registry, `ls`, `show` and their errors.

Classes are given as text, so that `saeval --help` imports none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal


@dataclass(frozen=True)
class NamedKind:
    """A kind of named thing: its words in commands and messages, the hook that supplies it, and its class."""

    attribute: str
    """Name of its attribute in `Registry`."""
    word: str
    """Its name in messages."""
    hook: str
    base: str
    """Its class, as `module:class`."""
    supplied: Literal["class", "instance", "function"]
    """Form in which the hook supplies it: subclasses of `base`, instances, or functions to make instances of."""
    ls: str = ""
    """Its word in `saeval ls`, if not `attribute`."""
    label: str = ""
    """Its entry in the column `kind` of `saeval ls`, for kinds that are listed together."""
    faults: str = ""
    """`module:function` that returns why suites cannot use a class, as a phrase, or None."""

    @property
    def listed(self) -> str:
        """Its word in `saeval ls`."""
        return self.ls or self.attribute

    def accepts(self, thing: Any) -> bool:
        """True if a hook may return `thing` as one of this kind."""
        if self.supplied == "function":
            return callable(thing)
        base = resolve_name(self.base)
        if self.supplied == "instance":
            return isinstance(thing, base)
        return isinstance(thing, type) and issubclass(thing, base)


_I = "saeval.interfaces"
KINDS = (
    NamedKind("metrics", "metric", "saeval_metrics", f"{_I}.metric:Metric", "class", faults=f"{_I}.metric:faults"),
    NamedKind("quantities", "quantity", "saeval_quantities", f"{_I}.quantity:Quantity", "function"),
    NamedKind(
        "controls", "control", "saeval_controls", f"{_I}.substitute:Control", "class",
        faults=f"{_I}.substitute:control_faults",
    ),
    NamedKind("loaders", "SAE format", "saeval_sae_loaders", f"{_I}.sae:SAELoader", "class", ls="formats"),
    NamedKind("data", "data source", "saeval_data", f"{_I}.data:Source", "class"),
    NamedKind("saes", "SAE", "saeval_saes", f"{_I}.sae:RegisteredSAE", "instance"),
    NamedKind("models", "model", "saeval_models", f"{_I}.model:RegisteredModel", "instance", label="registered"),
    NamedKind(
        "adapters", "model adapter", "saeval_models", f"{_I}.model:ModelAdapter", "class", ls="models", label="adapter"
    ),
    NamedKind("suites", "suite", "saeval_suites", "saeval.suite.schema:RegisteredSuite", "instance"),
    NamedKind("judges", "judge", "saeval_judges", f"{_I}.judge:Judge", "class"),
    NamedKind("engines", "engine", "saeval_engines", f"{_I}.engine:WorkerEngine", "class"),
    NamedKind("reports", "report format", "saeval_reports", "saeval.results.report:Report", "instance"),
)  # fmt: skip
"""In the order in which `saeval show` looks a name up."""
LISTED = (*dict.fromkeys(kind.listed for kind in KINDS), "plugins")
"""The words that `saeval ls` takes."""
