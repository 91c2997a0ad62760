"""Properties of an SAE that its entry in a suite declares."""

from __future__ import annotations

import pytest

import saeval_testbed
from saeval.base.errors import SuiteError
from saeval.base.run_options import RunOptions
from saeval.plan.cell import subject_record
from saeval.plan.plan import plan
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks

PATH = str(saeval_testbed.WEIGHTS / "saes" / "topk-8")


def planned(**entry):
    data = {"use": "python-stdlib", "context": 16, "sequences": 4}
    saes = [{"use": "saelens", "path": PATH, **entry}]
    suite = validate(
        {"suite": "facts", "model": "testbed", "data": data, "saes": saes, "metrics": ["l0"]}, Marks("facts")
    )
    return plan(suite, Registry(Plugins()), RunOptions())


def test_declared_facts_are_recorded_and_change_no_key():
    with_facts, without = planned(facts={"run": "a", "steps": 10}), planned()
    record = subject_record(with_facts.cells[0].subjects[0])
    assert (record["run"], record["steps"], record["k"], record["d_sae"]) == ("a", 10, 8, 1024)
    assert record["training_tokens"] == 4_000_000  # from the checkpoint
    assert [cell.key for cell in with_facts.cells] == [cell.key for cell in without.cells]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"k": 9}, "'facts' declares 'k', which topk-8 already has: 8"),
        ({"name": "other"}, "'facts' declares 'name', which topk-8 already has: 'topk-8'"),
        ("tokens", "'facts' declares properties, as in {training_tokens: 2000000}, got 'tokens'"),
        ({"run": [1]}, "'facts' declares properties"),
    ],
)
def test_wrong_facts_are_one_sentence(facts, words):
    with pytest.raises(SuiteError) as caught:
        planned(facts=facts)
    (problem,) = caught.value.problems
    assert problem.message.startswith(words)
