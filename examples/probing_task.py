"""A probing task: a data source whose texts have labels. Each task needs 20 texts of each class for fitting."""

from tempfile import TemporaryDirectory

import saeval
from saeval.plugin import Document, Source, digest_of, hookimpl

COLOURS = ("red", "green", "blue", "black", "white", "brown", "pink", "grey")
THINGS = ("house", "car", "cat", "table", "door", "shirt", "bird", "lamp", "chair", "ball", "boat", "cup")
VERBS = ("see", "like", "want", "buy")


class Requests(Source):
    """Short sentences, some of them questions: the task `question`, with the classes `yes` and `no`."""

    name = "requests"
    defaults = {"packing": "documents", "context": 16}  # noqa: RUF012

    def fingerprint(self):
        return digest_of([self.name, 1])

    def documents(self, split):
        made = [(verb, colour, thing) for verb in VERBS for colour in COLOURS for thing in THINGS]
        for number, (verb, colour, thing) in enumerate(made):
            fitted = number % 10 < 7  # every split has its own documents
            if fitted != (split == "fit"):
                continue
            question = number % 2 == 1
            text = f"do you {verb} a {colour} {thing}?" if question else f"you {verb} a {colour} {thing}."
            labels = {"question": "yes" if question else "no"}
            # Choices, such as of the penalty, are made on the documents for validation.
            yield Document(f"{verb} {colour} {thing}", text, labels=labels, validation=fitted and number % 10 >= 5)


@hookimpl
def saeval_data():
    return [Requests]


def run():
    plugins = saeval.Plugins([__file__])
    suite = {
        "suite": "requests",
        "model": "testbed",
        "data": {"use": "requests", "sequences": 90, "fit_sequences": 256},
        "saes": ["testbed/topk-16"],
        "metrics": [{"sparse_probing": {"tasks": ["question"], "k": [1, 5], "folds": 2}}],
    }
    with TemporaryDirectory() as folder:
        return saeval.run(suite, out=folder, plugins=plugins)


def test_one_feature_tells_questions_from_statements():
    (result,) = run()
    assert result.status == "ok", result.reason
    assert 0.5 < result.values["auc@1"]["value"] <= 1


if __name__ == "__main__":
    (result,) = run()
    for name in ("auc@1", "auc@5", "lead_neurons@1"):
        print(f"{name}: {result.values[name]['value']:.2f}")
