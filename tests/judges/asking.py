"""A plugin with a metric that asks the judge about an SAE: `--plugin asking.py`."""

from __future__ import annotations

from saeval.plugin import Metric, Prompt, Scalar, asking, hookimpl, torch

LIMIT = 3


def prompts(sae, questions):
    return [Prompt((("user", f"is feature {n} of {sae:.6f} clear"),), LIMIT) for n in range(questions)]


def cost(judge, questions):
    """The cost of one SAE. Its weights are not known before, but their number is as long whatever they are."""
    return judge.cost(prompts(1, questions))


def verdict(reply):
    """True or false; None if the reply is neither, or was cut short."""
    return {"yes": True, "no": False}.get(reply.text) if reply.complete else None


@asking(cost)
def opinions(interview, W_dec, questions):
    """What the judge says of the first features."""
    return interview.ask(prompts(float(W_dec.double().abs().mean()), questions), verdict)


class Clear(Metric):
    """How many features the judge finds clear."""

    name, version, headline = "clear", 1, ("share",)
    value_names = ("share", "unread")

    def __init__(self, questions: int = 4) -> None:
        self.questions = questions

    def conclude(self, opinions):
        known = torch.tensor([value for value in opinions.values if value is not None], dtype=torch.float64)
        share = (
            Scalar(float(known.mean()), unit="ratio")
            if len(known)
            else Scalar.undefined("no answer could be read", unit="ratio")
        )
        return {"share": share, "unread": Scalar(float(opinions.unread), unit="prompts")}


class Spread(Clear):
    """How different the judge's opinions are: it asks the same questions."""

    name, headline, value_names = "spread", ("variance",), ("variance",)

    def conclude(self, opinions):
        known = torch.tensor([value for value in opinions.values if value is not None], dtype=torch.float64)
        return {"variance": Scalar(float(known.var(correction=0)), unit="ratio")}


@hookimpl
def saeval_quantities():
    return [opinions]


@hookimpl
def saeval_metrics():
    return [Clear, Spread]
