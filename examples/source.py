"""A data source: the paragraphs of a text file, each a document."""

from pathlib import Path
from tempfile import TemporaryDirectory

from saeval.plugin import Document, SaevalError, Source, digest_of, hookimpl, sha256_file
from saeval.testing import check_source


class Paragraphs(Source):
    """The paragraphs of a text file, which empty lines separate."""

    name = "paragraphs"

    def __init__(self, path: Path):  # the keys of `data: {use: paragraphs, path: FILE, context: 128}`
        self.path = Path(path)
        if not self.path.is_file():
            raise SaevalError(f"data 'paragraphs': there is no file {self.path}; set 'path' to a text file")

    def fingerprint(self):  # changes if and only if the documents do
        return digest_of([self.name, sha256_file(self.path)])

    def documents(self, split):  # documents of one name are one cluster of the standard errors
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, paragraph in enumerate(text.split("\n\n")):
            yield Document(f"paragraph {number}", paragraph.strip())


@hookimpl
def saeval_data():
    return [Paragraphs]


def run():
    with TemporaryDirectory() as folder:
        one, other = Path(folder) / "one.txt", Path(folder) / "other.txt"
        one.write_text("A cat sat.\nIt slept.\n\nTwo dogs ran.\n", encoding="utf-8")
        other.write_text("Three mice hid.\n", encoding="utf-8")
        return check_source(Paragraphs, {"path": str(one)}, other={"path": str(other)})


def test_a_paragraph_is_a_document():
    assert [document.text for document in run()] == ["A cat sat.\nIt slept.", "Two dogs ran."]


if __name__ == "__main__":
    for document in run():
        print(f"{document.name}: {document.text!r}")
