"""The testbed's preference pairs as a data source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from saeval_data.pairs import Pair, PairOptions
from saeval_data.preferences import Pairs
from saeval_data.stdlib import PythonStdlib

MADE = 1000
"""Number of pairs generated, before `pairs` selects some."""


class TestbedPreferences(Pairs):
    """Pairs with a planted preference, from held-out modules by default (`modules: train` for the others).

    Columns: `subset`, and `flipped`, which is `yes` if the label contradicts the rule. Each module is a document.
    `made` is the number of pairs generated. The other parameters are those of `preferences`.
    """

    name = "testbed-preferences"
    __test__ = False  # no test class, although its name begins with Test

    def __init__(
        self,
        modules: Literal["held_out", "train"] = "held_out",
        made: int = MADE,
        pairs: int | None = None,
        context: int | None = None,
        fit_share: float = 0.0,
        swap: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(PairOptions(context, pairs=pairs), fit_share, swap, seed)
        self.modules, self.made = modules, made

    def fingerprint(self) -> str:
        parts = [PythonStdlib().fingerprint(), self.modules, self.made]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def facts(self) -> Mapping[str, Any]:
        return {"modules": self.modules, "made": self.made, **PythonStdlib().facts()}

    def records(self) -> Iterator[Pair]:
        from saeval_testbed.preferences import preference_pairs  # late: it imports tokenizers

        for row, pair in enumerate(preference_pairs(self.modules, self.made)):
            labels = {"subset": pair["subset"], "flipped": "yes" if pair["flipped"] else "no"}
            yield Pair(row, pair["document"], pair["prompt"], pair["chosen"], pair["rejected"], labels)
