"""Names in Python source: their roles, their labels, and the text before them."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from saeval.base.errors import SaevalError
from saeval.testing.claims import every, some
from saeval_data.python_names import BEFORE, PythonNames, names_of

SOURCE = """import os


class Point(Base):
    def norm(self, scale=1):
        return self.x.real * scale
"""


def test_roles_of_names():
    found = {role: [SOURCE[start:end] for start, end in places] for role, places in names_of(SOURCE).items()}
    assert found == {
        "function": ["norm"], "class": ["Point"], "attribute": ["x", "real"],
        "use": ["os", "Base", "self", "scale", "self", "scale"],
    }  # fmt: skip
    assert names_of("def broken(:\n") is None


def test_each_text_ends_with_the_line_of_its_name():
    documents = list(islice(PythonNames(each=3).documents("fit"), 400))
    for document in some(documents):
        ((start, end),) = document.spans["word"]
        assert document.text[start:end].isidentifier()
        assert start <= BEFORE
        assert document.text[end:].count("\n") <= 1
        definition = document.labels["role"] in ("function", "class")
        assert document.labels["definition"] == ("yes" if definition else "no")
    counts = Counter((document.name, document.labels["role"]) for document in documents)
    assert max(some(list(counts.values()))) == 3
    assert 0 < len({document.name for document in documents if document.validation}) < len({d.name for d in documents})
    other = list(islice(PythonNames(each=3, draw=1).documents("fit"), 400))
    assert every(document.name in {d.name for d in documents} for document in other[:50])
    assert documents != other


def test_a_number_of_names_that_is_refused():
    with pytest.raises(SaevalError, match="'each' must be from 1 to 1000, found 0"):
        PythonNames(each=0)
