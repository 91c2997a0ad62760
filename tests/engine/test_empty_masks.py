"""Where nothing is left to be scored: what the user is told is the cause, and no number comes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from saeval import SaevalError
from saeval.testing import TinyModel, TinySAE, evaluate, evaluate_tiny, tiny_plugins
from saeval.testing.claims import some
from saeval.text.tokens import TokenDataset


def of_tokens(tmp_path, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"tokens": [1, 2, 3, 4, 5, 6]}) + "\n" for _ in range(8)))
    data = {"use": "tokens", "path": str(path), "bos_id": 0, "bos": True, **options}
    return evaluate(
        model=TinyModel(), saes=[TinySAE()], data=data, metrics=["l0"], plugins=tiny_plugins(), allow=("*",)
    )


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"context": 4, "exclude": [0, 1, 2, 3, 4, 5, 6]}, "'exclude: [0, 1, 2, 3, 4, ...]' leaves no token in 14 more rows; "
         "exclude fewer, or add documents with other tokens"),
        ({"context": 1}, "'exclude: [bos]' leaves no token in 42 more rows, whose only input is BOS; raise 'context', "
         "or set 'exclude: []'"),
        ({"context": 4, "sequences": 100}, "request fewer, shorten 'context' or add documents"),
    ],
)  # fmt: skip
def test_the_sentence_names_exclude_where_that_is_the_cause(tmp_path, options, remedy):
    with pytest.raises(SaevalError) as wrong:
        of_tokens(tmp_path, **options)
    assert remedy in str(wrong.value)
    assert ("add documents" in str(wrong.value)) == ("add documents" in remedy)


def test_rows_without_a_token_of_the_mask_give_no_number():
    tokens = np.full((6, 9), 7, dtype=np.int32)
    rows = TokenDataset.from_arrays(
        tokens, np.tile(np.arange(6)[:, None], 9).astype(np.int32), np.arange(6), (7,), sequence_ids=np.arange(6)
    )
    saes = {"a": TinySAE(), "b": TinySAE(seed=1)}
    metrics = [
        "l0", "density", "reconstruction", "ce", "kl", "downstream_reconstruction", {"perturbation": {"draws": 1}},
        {"seed_stability": {"over": "g"}}, {"functional_stability": {"over": "g"}},
    ]  # fmt: skip
    results = evaluate_tiny(metrics, rows=rows, saes=saes, groups={"g": ["*"]})
    assert len(results) == 18  # the group has a twin
    for result in some(results):
        assert result.status == "undefined", (result.metric, result.values)
        assert "mask" in result.reason, (result.metric, result.reason)
        assert "exclude" in result.reason, (result.metric, result.reason)
