"""Windows and samples: random, disjoint between words and tests, equal to the text; token models against brute force."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from planted_features import Oracle
from saeval import evaluate
from saeval.plugin import Reply, Undefined
from saeval.testing import tiny_plugins
from saeval.testing.claims import every, none
from saeval_explanations.prompts import loud, marked, read_numbers, read_words
from saeval_explanations.sampling import Firing, SampledFeatures, in_decile, sampled_features
from saeval_explanations.tokens import SeenTokens, TokenModel, auc
from saeval_explanations.windows import AFTER, BEFORE, Window, silent_around

NAMES = [f"doc{number}q" for number in range(60)]


@pytest.fixture(scope="module")
def asked():
    """Explanation and detection of an SAE of the testbed on texts in which every line has the name of its document."""
    texts = ["".join(f"x = {name}({line}, {line + 1})\n" for line in range(12)) for name in NAMES]
    options = {"features": 30, "least_rows": 4, "shown": 4}
    results = evaluate(
        model="testbed", saes=["testbed/relu-5"], judge={"use": "oracle", "manner": "yes"}, allow=["*"],
        data={"texts": texts, "context": 64, "sequences": 40, "fit_sequences": 40, "packing": "documents"},
        metrics=[{"explanation": options}, {"detection": {**options, "windows": 8, "beside": []}}],
        plugins=tiny_plugins(judges=[Oracle]),
    )  # fmt: skip
    assert [r.status for r in results] == ["ok", "ok"], [r.traceback for r in results]
    return texts, {r.metric: r.values for r in results}


def documents_in(text):
    return set(re.findall(r"doc\d+q", text))


def test_words_and_tests_are_from_other_documents(asked):
    _, values = asked
    explained = {
        d for row in values["explanation"]["windows"]["rows"] for d in documents_in("".join(json.loads(row[4])))
    }
    tested = {d for row in values["detection"]["cases"]["rows"] for d in documents_in(row[3])}
    assert len(explained) > 5
    assert len(tested) > 5
    assert not explained & tested


def test_windows_are_the_text_that_the_model_saw(asked):
    texts, values = asked
    whole = "\0".join(texts)
    windows = ["".join(json.loads(row[4])) for row in values["explanation"]["windows"]["rows"]]
    windows += [row[3] for row in values["detection"]["cases"]["rows"]]
    assert len(windows) > 100
    assert every(window.replace("<|endoftext|>", "") in whole for window in windows)


COUNTS = st.lists(st.integers(0, 400), min_size=1, max_size=150)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31))
def test_the_sample_has_as_many_of_each_tenth(counts, wanted, least, seed):
    rows = np.array(counts)
    firing = Firing(rows * 3, rows, 1000)
    eligible = np.flatnonzero(rows >= least)
    if not len(eligible):
        with pytest.raises(Undefined):
            sampled_features(firing, firing, "s", wanted, least, seed)
        return
    found = sampled_features(firing, firing, "s", wanted, least, seed)
    assert len(found) == min(wanted, len(eligible)) == len(set(found.features.tolist()))
    assert set(found.features.tolist()) <= set(eligible.tolist())
    assert found.eligible == len(eligible)
    if len(eligible) >= 10 and wanted <= len(eligible) // 10 * 10:
        of_tenths = np.bincount(found.deciles, minlength=11)[1:]
        assert of_tenths.max() - of_tenths.min() <= 1
    assert (np.diff(rows[found.features]) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 10), min_size=2, max_size=80), st.integers(0, 2**31))
def test_another_feature_of_the_same_tenth(deciles, seed):
    deciles = np.sort(deciles)
    sampled = SampledFeatures(np.arange(len(deciles)) * 7, np.zeros(len(deciles)), deciles, len(deciles))
    other = in_decile(sampled, seed)
    assert sorted(other) == list(range(len(deciles)))
    assert none(i == j for i, j in enumerate(other))
    alone = [d for d in set(deciles.tolist()) if (deciles == d).sum() == 1]
    if not alone:
        assert (deciles[other] == deciles).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=60))
def test_auc_is_that_of_scikit_learn(pairs):
    scores, y = np.array([s for s, _ in pairs], dtype=float), np.array([b for _, b in pairs])
    expected = roc_auc_score(y, scores) if 0 < y.sum() < len(y) else np.nan
    assert auc(scores, y) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_rates_by_counting(seed):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 5, 80)
    before = np.concatenate([[-1], tokens[:-1]])
    seen = SeenTokens(tokens, before, draw.random((80, 2)) < 0.3)
    model = TokenModel(seen, 2)
    fires = seen.fires[:, 1]
    rate = {t: (fires[tokens == t].sum() + fires.mean()) / ((tokens == t).sum() + 1) for t in range(5)}
    assert model.by_token(1, seen) == pytest.approx([rate[t] for t in tokens])
    of_pairs = []
    for s, t in zip(before, tokens, strict=True):
        here = (before == s) & (tokens == t)
        of_pairs.append((fires[here].sum() + rate[t]) / (here.sum() + 1))
    assert model.by_pair(1, seen) == pytest.approx(of_pairs)
    unseen = SeenTokens(np.array([9]), np.array([1]), np.zeros((1, 2), bool))
    assert model.by_token(1, unseen) == pytest.approx([fires.mean()])


def test_the_list_has_the_largest_youden_index():
    draw = np.random.default_rng(3)
    tokens = draw.integers(0, 6, 300)
    seen = SeenTokens(
        tokens, tokens, (draw.random((300, 1)) < np.array([0.9, 0.1, 0.5, 0.1, 0.7, 0.05])[tokens][:, None])
    )
    fires = seen.fires[:, 0]
    best = max(
        ([a, b] for a in range(6) for b in range(a)),
        key=lambda pair: np.isin(tokens, pair)[fires].mean() - np.isin(tokens, pair)[~fires].mean(),
    )
    assert sorted(TokenModel(seen, 2).lists[0]) == sorted(best)


def test_silent_windows_have_no_firing_token():
    acts = np.zeros((1, 1, 60))
    acts[0, 0, 30] = 1
    expected = [not 30 - AFTER <= place <= 30 + BEFORE for place in range(60)]
    assert silent_around(acts)[0, 0].tolist() == expected


def test_marks():
    window = Window(0, 0, 0, [("a", 0.0), ("b", 1.0), ("c", 0.5), ("d", 0.2), ("e", 0.9)], 1.0)
    assert marked([t for t, _ in window.tokens], loud(window)) == "a<<bc>>d<<e>>"
    assert marked(["1 << 2", " >>"], [False, True]) == "1 < < 2<< > >>>"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("[1, 0, 10]", (1, 0, 10)),
        ("Sure: [1, 2, 3].", (1, 2, 3)),
        ("[1, 2]", None),
        ("[1, 2, 3, 4]", None),
        ("[1, 2, 11]", None),
        ("[1, 2, true]", None),
        ("[1, 2, 3] or [3, 2, 1]", None),
        ("1, 2, 3", None),
        ("[1, 2, three]", None),
        ("[7.0, 0.0, 10]", (7, 0, 10)),
        ("[7.5, 0, 10]", None),
        ("[1, 2, NaN]", None),
        ('["1", 2, 3]', None),
        ("[[1, 2, 3]]", None),
        ("", None),
    ],
)
def test_what_can_be_read_of_an_answer(text, numbers):
    assert read_numbers(3, Reply(text)) == numbers
    assert read_numbers(3, Reply(text, complete=False)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('the token "b"', 'the token "b"'),
        ('"names of months"', "names of months"),
        ('"a" and "b"', '"a" and "b"'),
        ('the token """', 'the token """'),
        ("**verbs**", "verbs"),
        ("a\x00b\u202ec <<d>>", "a b c d"),
        ('""', '""'),
    ],
)
def test_quotes_and_marks_of_words(text, words):
    assert read_words(Reply(text)) == words


def test_what_can_be_read_of_words():
    assert read_words(Reply(' "names of months" \nThey are...')) == "names of months"
    assert read_words(Reply("  \n")) is None
    assert read_words(Reply("names of", complete=False)) is None
