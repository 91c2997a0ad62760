"""A report: a format of its own for leaderboards, chosen by `--format tsv`."""

from saeval.plugin import Report, escapes, hookimpl
from saeval.testing import evaluate_tiny


def write(boards):
    """Return every scalar of every row, one on a line, separated by tabs."""
    lines = ["row\tvalue\tnumber\tstderr"]
    for board in boards:
        for row in board.rows:
            for column, entry in row.entries.items():
                numbers = ("" if x is None else f"{x:.4g}" for x in (entry.value, entry.stderr))
                lines.append("\t".join([escapes.line(row.name), column, *numbers]))
    return "\n".join(lines) + "\n"


@hookimpl
def saeval_reports():
    return [Report("tsv", write, "Tab-separated values")]


def run():
    return evaluate_tiny(["l0"])


def test_each_line_has_four_fields():
    lines = write(run().boards()).splitlines()
    assert {line.count("\t") for line in lines} == {3}


if __name__ == "__main__":
    print(write(run().boards()), end="")
