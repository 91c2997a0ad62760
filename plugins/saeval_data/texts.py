"""Text handed over from Python, or written into the suite itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from saeval.plugin import Document, SaevalError, Source
from saeval_data import files


def _listed(given: Any) -> Any:
    """A list of what a column of a data frame or data set holds; anything else as it is."""
    whole = isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable)
    return given if whole else list(given)


class Texts(Source):
    """Text in memory: each of `texts` is a document, of which `names` has the names.

    From Python, `data={"texts": ["...", "..."], "context": 128}`. Documents of one name are one, as pieces of one text;
    without names every text is by itself. Null texts are left out and counted.
    """

    name = "texts"

    def __init__(
        self,
        texts: Annotated[list[str | None], BeforeValidator(_listed)],
        names: Annotated[list[str] | None, BeforeValidator(_listed)] = None,
    ) -> None:
        if not texts:
            raise SaevalError("data 'texts': the list of texts is empty")
        if names is not None and len(names) != len(texts):
            raise SaevalError(f"data 'texts': expected a name for each of {len(texts)} texts, found {len(names)}")
        self.names = names or [f"text {number}" for number in range(1, len(texts) + 1)]
        self.texts = [files.text_of(t, "texts", f"data 'texts': text {n}") for n, t in enumerate(texts, start=1)]

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.names, self.texts]).encode()).hexdigest()

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        for name, text in zip(self.names, self.texts, strict=True):
            yield Document(name, text)

    def facts(self) -> Mapping[str, Any]:
        return {"texts": len(self.texts)}
