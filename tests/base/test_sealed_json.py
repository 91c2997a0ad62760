"""Files of saeval's own that carry a checksum."""

from __future__ import annotations

import pytest

from saeval.base.sealed_json import EarlierError, sealed, unsealed


def test_a_file_is_read_as_it_was_written():
    assert unsealed(sealed({"a": 1})) == {"a": 1}


def test_a_file_without_a_checksum_is_an_earlier_one_or_overwritten():
    with pytest.raises(EarlierError, match=r"^it has no checksum \(written by an earlier saeval, or overwritten\)$"):
        unsealed(b"{}")
