"""Numbers as text."""

from __future__ import annotations

import pytest

from saeval.base.formatting import number


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (32129.0, 4, "32129"), (-32129.4, 4, "-32129"), (1234.5, 4, "1234"), (123.46, 4, "123.5"), (120.0, 2, "120"),
        (3_213_000.0, 4, "3.213e+06"), (0.012346, 4, "0.01235"), (-0.0, 4, "0"), (float("nan"), 4, "–"), (None, 4, "–"),
    ],
)  # fmt: skip
def test_a_count_below_a_million_is_whole(value, digits, text):
    assert number(value, digits) == text
