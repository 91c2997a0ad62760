"""A value's null hypothesis and where it is comparable: stored with it, read back, and given to the board's column."""

from __future__ import annotations

import pytest

from saeval.plugin import Null, Scalar
from saeval.results.records import check_values

NULL = Null("isotropic noise", above="more harmful than", below="less harmful than", p=0.25)


def test_a_value_is_stored_with_its_null_and_the_rows_it_is_comparable_with():
    record = Scalar(0.5, comparable="hook", null=NULL).record()
    assert record["comparable"] == "hook"
    assert record["null"] == {
        "name": "isotropic noise", "value": 0.0, "above": "more harmful than", "below": "less harmful than",
    }  # fmt: skip
    assert record["p"] == 0.25
    check_values({"v": record})


def test_a_value_of_the_old_form_has_neither():
    record = Scalar(0.5).record()
    assert {"comparable", "null", "p"}.isdisjoint(record)


def test_an_unknown_comparability_is_refused_by_name():
    with pytest.raises(ValueError, match="'comparable' is 'galaxy'; it must be 'hook', 'model' or 'everywhere'"):
        Scalar(0.5, comparable="galaxy")  # type: ignore[arg-type]


def test_a_p_value_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"'p' is 1.5; p is from 0 to 1"):
        Null("noise", p=1.5)
