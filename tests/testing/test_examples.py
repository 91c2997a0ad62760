"""The complete plugin in docs/plugins.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saeval.testing import check_metric, evaluate_tiny
from saeval.testing.claims import some

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.fixture
def metric():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "[Errors]" in block]
    names: dict[str, object] = {"__name__": "errors"}
    exec(compile(code, "errors.py", "exec"), names)
    return names["Errors"]


def test_every_value_has_an_error_and_a_direction(metric):
    (result,) = evaluate_tiny(["errors"], metric)
    assert list(result.values) == ["norm", "share", "norm_p95", "active_p50"]
    for record in some(result.values.values()):
        assert record["stderr"] is not None
        assert record["ci95"][0] <= record["value"] <= record["ci95"][1]
    assert [record["better"] for record in result.values.values()] == ["lower", "lower", "lower", None]
    assert result.values["norm"]["value"] < result.values["norm_p95"]["value"]


def test_it_passes_the_check_of_metrics(metric):
    check_metric(metric)
