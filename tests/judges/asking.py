"""A plugin with a metric that asks the judge about an SAE: `--plugin asking.py`."""

from __future__ import annotations

from saeval.plugin import Cost, Metric, Prompt, Scalar, asking, hookimpl, torch

LIMIT = 3


def prompts(d_sae, questions):
    return [Prompt((("user", f"is feature {n} of {d_sae} clear"),), LIMIT) for n in range(questions)]


def cost(judge, questions):
    """The cost of one SAE; the width, which is not known before, has as many words whatever it is."""
    return judge.cost(prompts(1, questions))


def verdict(reply):
    """True or false; None if the reply is neither, or was cut short."""
    return {"yes": True, "no": False}.get(reply.text) if reply.complete else None


@asking(cost)
def opinions(interview, W_dec, questions):
    """What the judge says of the first features."""
    return interview.ask(prompts(len(W_dec), questions), verdict)


class Clear(Metric):
    """How many features the judge finds clear."""

    name, version, headline = "clear", 1, ("share",)
    value_names = ("share", "unread")

    def __init__(self, questions: int = 4) -> None:
        self.questions = questions

    def conclude(self, opinions):
        known = torch.tensor([value for value in opinions.values if value is not None], dtype=torch.float64)
        share = Scalar(float(known.mean())) if len(known) else Scalar.undefined("no answer could be read")
        return {"share": share, "unread": Scalar(float(opinions.unread))}


class Spread(Clear):
    """How different the judge's opinions are: it asks the same questions."""

    name, headline, value_names = "spread", ("variance",), ("variance",)

    def conclude(self, opinions):
        known = torch.tensor([value for value in opinions.values if value is not None], dtype=torch.float64)
        return {"variance": Scalar(float(known.var(correction=0)))}


@hookimpl
def saeval_quantities():
    return [opinions]


@hookimpl
def saeval_metrics():
    return [Clear, Spread]
