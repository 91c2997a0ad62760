"""`check_control`: tests that an untrained baseline treats each token by itself and draws what it says it draws."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from saeval.api import evaluate
from saeval.base.parameters import schema, validated
from saeval.collection import Results
from saeval.interfaces.data import Dataset
from saeval.interfaces.documentation import description
from saeval.interfaces.live_objects import LiveSAE
from saeval.interfaces.metric import Metric
from saeval.interfaces.substitute import Control, Substitute, control_faults
from saeval.stats.evidence import Mean
from saeval.stats.values import Scalar
from saeval.testing.fixtures import register_rows, tiny_plugins
from saeval.testing.substitute_checks import Trial, seeded
from saeval.testing.tiny import TinyModel, TinySAE, Variant, tiny_tokens

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
TOLERANCE = 1e-5
_ROWS = 8
_DOSES = (0.2, 1.0)
_KEYED = (
    "override at(token_keys), and draw from saeval.plugin.hashed(seed, token_keys), which depends on the token alone"
)
_TRIALS: tuple[tuple[str, str, int, dict[str, Any], int], ...] = (
    ("the same run again, with other global seeds", f"it draws random numbers without a key; {_KEYED}", 7, {}, 1),
    ("batch size 1", f"it depends on how rows are split into batches; {_KEYED}", 1, {}, 0),
    ("rows in another order", f"it depends on the order of rows; {_KEYED}", 7, {"order_seed": 1}, 0),
    (
        "other token ids in the padding",
        "it reads positions outside the mask; request the mask, and select with x[mask]", 7,
        {"variant": Variant(other_padding=True)}, 0,
    ),
)  # fmt: skip
"""A label, the likely cause of a difference, the batch size, the change of the rows and the global seed."""

Token = tuple[int, int, int]
"""A draw, a sequence id and a position."""


class _Probe(Metric):
    """Keeps what controls put in place of each token of the mask."""

    name, version = "control_probe", 1

    def observe(self, sae: Any, activations: Any, reconstruction: Any, mask: Any, batch: Any) -> Mean:
        if not isinstance(sae, LiveSAE):
            draws = _SEEN["substitutes"]
            draw = draws.setdefault(id(sae), (len(draws), sae))[0]
            for row, position in mask.nonzero().tolist():
                token = (draw, int(batch.sequence_ids[row]), position)
                replaced, original = reconstruction[row, position], activations[row, position]
                _SEEN["tokens"][token] = replaced.double().numpy(), original.double().numpy()
        return Mean.of((activations - reconstruction).square().sum(-1), mask)

    def conclude(self, total: Mean) -> Scalar:
        return Scalar(total.value, better="lower")


_SEEN: dict[str, Any] = {}
"""What the probe saw in the run under way."""


def check_control(
    control: type[Control], params: Mapping[str, Any] | None = None, *, quantities: Sequence[Any] = (),
) -> dict[str, Substitute]:  # fmt: skip
    """Test that what a control puts in place of a token depends on that token, the fit split and the seed alone.

    `params` are its keys in a suite's `controls:`. Runs it on a tiny model, SAE and data: with other batch sizes,
    orders
    of rows, padding and global seeds, and compares the replacement of each token. Checks the class, the shape, dtype
    and
    finiteness of what `encode` and `decode` return, that its draws differ, that `seed` and `dose` have an effect, and
    that `weights` are those that `decode` uses. `quantities` adds what it requests.

    Returns the substitutes that were built, by the number of the draw. Raises `AssertionError` with what was violated,
    the smallest example and the remedy.
    """
    return _Check(control, dict(params or {}), quantities).run()


class _Check:
    def __init__(self, control: type[Control], params: dict[str, Any], quantities: Sequence[Any]) -> None:
        self.control, self.params = control, params
        self.what = f"control '{getattr(control, 'name', control.__name__)}'"
        self.quantities = quantities
        self.model, self.sae = TinyModel(), TinySAE(dtype=torch.float64)

    def run(self) -> dict[str, Substitute]:
        self._check_class()
        copies = self.control(**validated(self.control, self.params, self.what)).copies
        assert type(copies) is int and copies > 0, (
            f"{self.what}: copies is {copies!r}; return the number of draws, 1 or more"
        )
        first = self._tokens("the first run", self.params)
        built = {str(draw): substitute for draw, substitute in _SEEN["substitutes"].values()}
        for draw, substitute in built.items():
            Trial(substitute, f"{self.what}, draw {draw}", self.sae.W_dec.shape[1], self.sae.W_dec.shape[1]).check()
        for label, cause, size, change, seed in _TRIALS:
            now = self._tokens(label, self.params, size, tiny_tokens(_ROWS, **change), seed)
            self._compare(first, now, label, cause)
        self._check_draws(first, copies)
        self._check_parameters(first)
        return built

    def _check_class(self) -> None:
        name = getattr(self.control, "name", None)
        assert isinstance(name, str) and NAME.fullmatch(name), (
            f"{self.control.__name__}.name is {name!r}; it is written in suites: lower case, of letters, digits, _ "
            "and -"
        )
        fault = control_faults(self.control)
        assert fault is None, f"{self.what}: {fault}"
        assert description(self.control), f"{self.what} has no docstring; `saeval ls controls` prints its first line"
        version = self.control.version
        assert type(version) is int and version > 0, f"{self.what}: version is {version!r}; expected a whole number"
        standing, dose = self.control.standing, self.control.dose
        assert standing is None or type(standing) is int, (
            f"{self.what}: standing is {standing!r}; expected an int or None"
        )
        names = list(schema(self.control).model_fields)
        assert dose is None or dose in names, (
            f"{self.what}: dose is {dose!r}, which is no parameter of __init__ ({names})"
        )

    def _tokens(
        self, label: str, params: Mapping[str, Any], size: int = 32, rows: Dataset | None = None, seed: int = 0
    ) -> dict[Token, tuple[np.ndarray, np.ndarray]]:
        """Return what replaces each token, and what stood there, of every draw."""
        _SEEN.update(substitutes={}, tokens={})
        data = register_rows(f"control-{self.control.name}", rows or tiny_tokens(_ROWS), tiny_tokens(_ROWS))
        with seeded(seed):
            results = evaluate(
                model=self.model, saes={"tinysae": self.sae}, data=data, metrics=["control_probe"], batch_size=size,
                controls=[{"use": self.control.name, **params}], allow=["*"],
                plugins=tiny_plugins(_Probe, quantities=self.quantities, controls=[self.control]),
            )  # fmt: skip
        self._check_ran(results, label)
        tokens: dict[Token, tuple[np.ndarray, np.ndarray]] = _SEEN["tokens"]
        assert tokens, f"{self.what} has no row ({label}); give the parameters with which it has one"
        return tokens

    def _check_ran(self, results: Results, label: str) -> None:
        for result in results:
            built = "; build has to return a Substitute" if "has_features" in str(result.reason) else ""
            assert result.status == "ok" or result.subject == "tinysae", (
                f"{self.what} {result.status} ({label}): {result.reason}{built}\n\n{result.traceback or ''}"
            )

    def _compare(self, first: Mapping[Token, Any], now: Mapping[Token, Any], label: str, cause: str) -> None:
        for token, (before, _) in first.items():
            after = now[token][0] if token in now else np.full_like(before, np.nan)
            close = np.isclose(after, before, rtol=TOLERANCE, atol=TOLERANCE)
            if not close.all():
                unit = int(np.flatnonzero(~close)[0])
                draw, row, position = token
                raise AssertionError(
                    f"{self.what}: unit {unit} of the token at sequence {row}, position {position} (draw {draw}) is "
                    f"{after[unit]:.6g} with {label}, {before[unit]:.6g} in the first run: {cause}"
                )

    def _check_draws(self, tokens: Mapping[Token, Any], copies: int) -> None:
        draws = {draw for draw, _, _ in tokens}
        assert len(draws) == copies, f"{self.what}: copies is {copies}, but {len(draws)} substitutes were built"
        for draw in sorted(draws - {0}):
            equal = all(
                np.array_equal(tokens[draw, row, position][0], x)
                for (d, row, position), (x, _) in tokens.items()
                if d == 0
            )
            assert not equal, (
                f"{self.what}: draws 0 and {draw} put the same in place of every token; request 'copy' in build, and "
                "draw "
                f"from hashed(seed, copy, ...)"
            )

    def _check_parameters(self, first: Mapping[Token, Any]) -> None:
        """Check that another seed gives other draws, and that a larger dose damages more."""
        if "seed" in schema(self.control).model_fields:
            now = self._tokens("another seed", {**self.params, "seed": 1 + int(self.params.get("seed", 0))})
            assert any(not np.array_equal(now[token][0], x) for token, (x, _) in first.items()), (
                f"{self.what}: another seed changes nothing; draw from hashed(self.seed, ...)"
            )
        if self.control.dose is not None:
            damages = []
            for dose in _DOSES:
                tokens = self._tokens(f"{self.control.dose} {dose}", {**self.params, self.control.dose: dose})
                damages.append(sum(float(((x - y) ** 2).sum()) for x, y in tokens.values()))
            assert damages[0] < damages[1], (
                f"{self.what}: the squared error is {damages[0]:.6g} with {self.control.dose} {_DOSES[0]}, "
                f"{damages[1]:.6g} with {_DOSES[1]}; a larger dose has to damage more"
            )
