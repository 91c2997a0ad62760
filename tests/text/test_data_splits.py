"""The fit split never shares a document with the evaluated one."""

from __future__ import annotations

import pytest

from documents import Documents, build, corpus
from saeval.base.errors import SaevalError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_splits_of_a_source_that_does_not_split_itself():
    source = Documents(corpus(60, 8))
    evaluation, fit = (build(source, split=split) for split in ("evaluation", "fit"))
    assert not set(evaluation.cluster_names) & set(fit.cluster_names)
    assert len(evaluation.cluster_names) + len(fit.cluster_names) == 60
    assert 4 <= len(fit.cluster_names) <= 20


@pytest.mark.parametrize("documents", [2, 3, 4])
def test_small_corpora_have_both_splits(documents):
    for first in range(12):  # names that hash to one side and to both
        source = Documents({f"n{first + i}": [10, 11, 12] for i in range(documents)})
        evaluation, fit = (build(source, split=split) for split in ("evaluation", "fit"))
        assert not set(evaluation.cluster_names) & set(fit.cluster_names)
        assert len(evaluation.cluster_names) + len(fit.cluster_names) == documents


def test_a_single_document_is_evaluated_and_has_no_fit_split():
    for name in ("a", "n3", "n7", "some/module.py"):
        source = Documents({name: [10, 11, 12]})
        assert build(source).cluster_names == [name]
        with pytest.raises(SaevalError, match="a fit split needs at least 2 documents, found 1"):
            build(source, split="fit")


def test_a_source_that_splits_itself_is_not_cut():
    source = Documents({"a": [10, 11, 12]}, fit={"b": [20, 21, 22]})
    assert build(source).cluster_names == ["a"]
    assert build(source, split="fit").cluster_names == ["b"]
