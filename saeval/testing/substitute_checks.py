"""Checks of a substitute by itself: what `encode` and `decode` return for a few tokens, in whatever company."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from saeval.base.errors import said
from saeval.interfaces.substitute import Encoding, Substitute

T = TypeVar("T")
ROWS, PLACES = 3, 4
"""Rows and positions of the tokens on which a substitute is tried."""
AGREE = 1e-6
"""Relative difference, in float64, up to which two results count as equal."""
FEW = 8
"""Features whose decoder rows are tried."""


def a_few_tokens(d: int, seed: int = 0) -> Tensor:
    """Return random activations `[3, 4, d]` in float64."""
    return torch.randn(ROWS, PLACES, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators, and restore their states at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class Trial:
    """A substitute that encodes and decodes a few tokens; every check raises `AssertionError` and names `what`."""

    def __init__(self, substitute: Substitute, what: str, d_in: int, d_out: int) -> None:
        self.substitute, self.what, self.d_out = substitute, what, d_out
        self.inputs, self.activations = a_few_tokens(d_in), a_few_tokens(d_out, seed=0 if d_in == d_out else 1)

    @torch.no_grad()
    def check(self) -> None:
        """Run all checks."""
        first = self._run("the first call")
        self._check_alike(first, self._run("the second call", seed=1), "the same call again", (
            "it keeps state between calls or draws random numbers without a key; keep data of a batch in the "
            "encoding's context, and draw from hashed(seed, token_keys)"
        ))  # fmt: skip
        rows = [self._run("a call with one row", rows=[row]) for row in range(ROWS)]
        self._check_alike(first, tuple(map(torch.cat, zip(*rows, strict=True))), "the row alone", (
            "a token's result depends on the other rows of its batch; use nothing but the token itself"
        ))  # fmt: skip
        if not self.substitute.reads_earlier:
            places = [self._run("a call with one position", places=[place]) for place in range(PLACES)]
            alone = tuple(torch.cat(parts, 1) for parts in zip(*places, strict=True))
            self._check_alike(first, alone, "the token alone in its row", (
                "a token's result depends on the other tokens of its row; if that is how the SAE works, set "
                "reads_earlier = True"
            ))  # fmt: skip
        self._check_decoder()

    def _run(
        self, label: str, rows: list[int] | None = None, places: list[int] | None = None, seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Return the feature activations, if there are any, and the replacement, for some of the tokens."""
        rows, places = rows or list(range(ROWS)), places or list(range(PLACES))
        x, y = (source[rows][:, places] for source in (self.inputs, self.activations))
        if self.d_out == self.inputs.shape[-1]:
            y = x.clone()
        before = (x.clone(), y.clone())
        keys = np.arange(ROWS * PLACES, dtype=np.uint64).reshape(ROWS, PLACES)[np.ix_(rows, places)]
        with seeded(seed):
            bound = self._called("at", lambda: self.substitute.at(keys))
            assert isinstance(bound, Substitute), f"{self.what}: at(token_keys) returned {_kind(bound)}, no Substitute"
            encoding = self._called("encode", lambda: bound.encode(x)) if self.substitute.has_features else None
            returned = () if encoding is None else (self._features(encoding, x),)
            replacement = self._called("decode", lambda: bound.decode(encoding, y))
        self._check_tensor("decode", replacement, (*y.shape[:-1], self.d_out))
        assert replacement.dtype == y.dtype, (
            f"{self.what}: decode returned {_name(replacement.dtype)} for activations in {_name(y.dtype)}; end with "
            f"x_hat.to(activations.dtype)"
        )
        for given, kept in zip((x, y), before, strict=True):
            where = _first_difference(given, kept)
            assert where is None, (
                f"{self.what}: {label} changed its argument at {where}; it is shared with metrics and other SAEs: "
                f"work on a copy, as in x = x - b in place of x -= b"
            )
        return (*returned, replacement.clone())

    def _features(self, encoding: Encoding, x: Tensor) -> Tensor:
        assert isinstance(encoding, Encoding), (
            f"{self.what}: encode returned {_kind(encoding)}; return Encoding(feature_acts), or "
            f"Encoding(feature_acts, context) with what decode needs besides"
        )
        self._check_tensor("encode", encoding.feature_acts, (*x.shape[:-1], self.substitute.d_sae))
        return encoding.feature_acts.clone()

    def _called(self, method: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:  # of somebody else's class
            dtype = "; the dtype of x may be another than the weights': write x.to(W_enc.dtype)"
            hint = dtype if "dtype" in str(error) or "scalar type" in str(error) else ""
            raise AssertionError(f"{self.what}: {method} raised {said(error)}{hint}") from error

    def _check_tensor(self, method: str, tensor: object, shape: tuple[int | None, ...]) -> None:
        assert isinstance(tensor, Tensor), f"{self.what}: {method} returned {_kind(tensor)}, no tensor"
        assert tuple(tensor.shape) == shape, (
            f"{self.what}: {method} returned the shape {list(tensor.shape)} for {shape[0]} rows of {shape[1]} tokens; "
            f"expected {list(shape)}"
        )
        bad = (~tensor.isfinite()).nonzero()
        assert not len(bad), f"{self.what}: {method} returned {tensor[tuple(bad[0])].item()} at {_place(bad[0])}"

    def _check_alike(self, first: tuple[Tensor, ...], other: tuple[Tensor, ...], label: str, cause: str) -> None:
        names = ("feature_acts", "x̂")[-len(first) :]
        for name, before, now in zip(names, first, other, strict=True):
            where = _first_difference(now, before)
            assert where is None, f"{self.what}: {name} is {where} with {label}: {cause}"

    def _check_decoder(self) -> None:
        """Check that each of a few features moves the reconstruction along its row of `W_dec`."""
        W_dec = self.substitute.weights.get("W_dec")
        if not self.substitute.has_features or W_dec is None:
            return
        keyed = self.substitute.at(np.arange(ROWS * PLACES, dtype=np.uint64).reshape(ROWS, PLACES))
        encoding = keyed.encode(self.inputs)
        acts = encoding.feature_acts
        base = keyed.decode(encoding._replace(feature_acts=torch.zeros_like(acts)), self.activations)
        for feature in range(min(FEW, len(W_dec))):
            only = torch.zeros_like(acts)
            only[..., feature] = 1
            moved = (keyed.decode(encoding._replace(feature_acts=only), self.activations) - base)[0, 0]
            row = W_dec[feature].to(moved)
            cosine = float(torch.nn.functional.cosine_similarity(moved, row, dim=0))
            assert cosine > 1 - 1e-4 or not row.any(), (
                f"{self.what}: feature {feature} alone moves x̂ in a direction whose cosine with "
                f"weights['W_dec'][{feature}] is {cosine:.4g}, not 1: 'weights' are others than those that decode "
                "uses, "
                f"or in another order"
            )


def _first_difference(now: Tensor, before: Tensor) -> str | None:
    """Return the smallest example of a difference, as text; None if there is none."""
    if torch.allclose(now, before, rtol=AGREE, atol=AGREE):
        return None
    place = (~torch.isclose(now, before, rtol=AGREE, atol=AGREE)).nonzero()[0]
    values = now[tuple(place)].item(), before[tuple(place)].item()
    return f"{values[0]:.6g}, not {values[1]:.6g}, at {_place(place)},"


def _place(index: Tensor) -> str:
    row, position, unit = index.tolist()
    return f"row {row}, position {position}, unit {unit}"


def _kind(thing: object) -> str:
    return f"a {type(thing).__name__}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
