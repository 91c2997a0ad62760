"""SAEBench 0.6.0's detection score of automatic interpretation (sae_bench/evals/autointerp/main.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64
from pydantic import Field

from saeval.plugin import (
    Batch,
    Cost,
    Evidence,
    Interview,
    Judge,
    Metric,
    Prompt,
    Reply,
    Scalar,
    Table,
    Undefined,
    Value,
    asking,
    fold,
    hashed,
)
from saeval_explanations.sampling import Firing
from saeval_explanations.windows import Window, Windows, acts_of, strongest

if TYPE_CHECKING:
    from torch import Tensor

TOP, WEIGHTED, RANDOM = 12, 7, 10
"""Numbers of windows: the strongest, weighted ones of the others, and random ones."""
TOP_SHOWN, WEIGHTED_SHOWN = 10, 5
"""How many of them the judge sees for its explanation; the others, and the random ones, are the test."""
THRESHOLD = 0.01
"""Share of the largest activation above which a token is active."""
LEAST = 15
"""Features that fire on more tokens are sampled."""
MAX_TOKENS = 30
_RESERVE = 64
"""Weighted windows that are kept: those with a token as strong as the strongest windows are left out at the end."""
_WEIGHTED = "weighted"
_START = "activates on"

_EXPLAIN = (
    "This is about neurons of a neural network. A neuron is active on a certain word, part of a word, or concept in a "
    "short text. The words on which it is active stand between << and >>. You get a list of such texts, the one with "
    "the strongest activation first. Say in one sentence of at most 20 words what the neuron is active on. Cover most "
    "of the marked words, so do not be too specific, and mind their case and punctuation if that seems to matter. No "
    'formatting, no long list of words. Examples: "This neuron activates on the word \'seldom\' in negations", "This '
    'neuron activates on verbs of motion", "This neuron activates on the letters \'un\' at the start of words", "This '
    'neuron activates on texts about the weather".'
)
_SCORE = (
    "This is about neurons of a neural network. A neuron is active on a certain word, part of a word, or concept in a "
    "short text. You get a short explanation of what a neuron is active on, and {count} texts in random order. Answer "
    "with the numbers of the texts in which it should be active on at least one word, separated by commas, such as "
    '"{example}". Do not read the explanation too narrowly. If it should be active in none, answer "None". Write '
    "nothing else."
)


def autointerp_latents(evaluated_firing: Firing, latents: int, seed: int) -> Int[np.ndarray, "n"]:
    """At most `latents` random features among those that fire on more than 15 tokens."""
    alive = np.flatnonzero(evaluated_firing.tokens > LEAST)
    if not len(alive):
        raise Undefined(f"no feature fires on more than {LEAST} tokens")
    return np.sort(alive[np.argsort(hashed(seed, "autointerp", alive), kind="stable")[:latents]])


@fold
def autointerp_windows(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    batch: Batch,
    token_keys: UInt64[np.ndarray, "batch seq"],
    autointerp_latents: Int[np.ndarray, "n"],
    buffer: int,
    seed: int,
) -> dict[str, Evidence]:
    """Fold: of each feature the strongest windows, windows drawn in proportion to the square of the activation, and
    random ones, all at least `buffer` tokens from the ends of their rows."""
    parts: dict[str, list[Windows]] = {"top": [], _WEIGHTED: [], "random": []}
    seq = included.shape[1]
    allowed = (np.arange(seq) >= buffer) & (np.arange(seq) < seq - buffer)
    inside = included.cpu().numpy()
    for place, acts in acts_of(feature_acts, included, autointerp_latents):
        features = autointerp_latents[place]
        labels = np.zeros((len(inside), len(features)), dtype=np.int8)
        draws = {
            kind: (hashed(seed, kind, features[:, None, None], token_keys[None]).astype(np.float64) + 0.5) / 2.0**64
            for kind in (_WEIGHTED, "random")
        }
        with np.errstate(divide="ignore"):
            # The k smallest of -log(u) / w are k draws without replacement with probabilities as w (Efraimidis and
            # Spirakis 2006).
            weighted = np.where(acts != 0, -np.log(draws[_WEIGHTED]) / np.square(acts.astype(np.float64)), np.inf)
        orders = {
            "top": (strongest(np.maximum(acts, 0)), TOP),
            _WEIGHTED: (weighted, _RESERVE),
            "random": (np.where(inside, draws["random"], np.inf), RANDOM),
        }
        for kind, (order, size) in orders.items():
            own = Windows.of(np.where(allowed, order, np.inf), acts, batch, labels, size, buffer, buffer)
            parts[kind].append(own)
    return {kind: Windows.joined(own) for kind, own in parts.items()}


class Example(NamedTuple):
    """A text that the judge sees."""

    window: Window
    active: tuple[bool, ...]
    """Of each token, whether its activation is above the threshold; random texts count as not active anywhere."""

    def text(self, marks: bool) -> str:
        """Return the text in one line, perhaps with its active tokens marked."""
        tokens = [text for text, _ in self.window.tokens]
        parts = [f"<<{t}>>" if marks and a else t for t, a in zip(tokens, self.active, strict=True)]
        return "".join(parts).replace("\ufffd", "").replace("\n", "↵")


@dataclass(frozen=True)
class Examples:
    """The texts of one feature."""

    feature: int
    shown: tuple[Example, ...]
    tested: tuple[Example, ...]


def autointerp_examples(
    autointerp_windows: dict[str, Windows],
    autointerp_latents: Int[np.ndarray, "n"],
    token_text: Callable[[Sequence[int]], list[str]],
    seed: int,
) -> tuple[Examples, ...]:
    """The texts of each feature that has enough, those for the explanation and those of the test."""
    found = []
    for number, feature in enumerate(autointerp_latents):
        kinds = {kind: list(own.windows(number, token_text)) for kind, own in autointerp_windows.items()}
        top = kinds["top"]
        if not top:
            continue
        largest = max(act for w in top for _, act in w.tokens)
        weakest = top[-1].activation
        weighted = [w for w in kinds[_WEIGHTED] if w.activation < weakest][:WEIGHTED]
        if not weighted:
            continue

        def example(window: Window, largest: float = largest) -> Example:
            return Example(window, tuple(act > THRESHOLD * largest for _, act in window.tokens))

        def split(windows: list[Window], count: int, feature: int = int(feature)) -> tuple[list[Window], list[Window]]:
            rows = np.array([w.row for w in windows], dtype=np.int64)
            mixed = [windows[i] for i in np.argsort(hashed(seed, "split", feature, rows), kind="stable")]
            return mixed[:count], mixed[count:]

        (top_shown, top_tested), (some, others) = split(top, TOP_SHOWN), split(weighted, WEIGHTED_SHOWN)
        shown = sorted((example(w) for w in [*top_shown, *some]), key=lambda e: -max(a for _, a in e.window.tokens))
        tested = [example(w) for w in [*top_tested, *others]]
        tested += [Example(w, (False,) * len(w.tokens)) for w in kinds["random"]]
        keys = hashed(seed, "order", int(feature), np.arange(len(tested)))
        order = np.argsort(keys, kind="stable")
        found.append(Examples(int(feature), tuple(shown), tuple(tested[i] for i in order)))
    return tuple(found)


def explaining(texts: Sequence[str]) -> Prompt:
    """Return the question what a neuron is active on."""
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))
    return Prompt((("system", _EXPLAIN), ("user", f"The texts are:\n\n{listed}")), MAX_TOKENS)


def scoring(words: str, texts: Sequence[str]) -> Prompt:
    """Return the question in which texts a neuron with this explanation is active."""
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))
    example = ", ".join(str(number) for number in range(1, len(texts) + 1) if number % 4 == 2)
    user = f"The explanation: this neuron is active on {words}.\n\nThe texts:\n\n{listed}"
    return Prompt((("system", _SCORE.format(count=len(texts), example=example)), ("user", user)), MAX_TOKENS)


def read_words(reply: Reply) -> str | None:
    """Return what follows `activates on`, without the last full stop; None for an empty reply."""
    return reply.text.split(_START)[-1].strip().rstrip(".").strip() or None


def read_choice(reply: Reply) -> tuple[int, ...] | None:
    """Return the numbers in a reply; None if anything but numbers, commas, `and` or `None` is in it."""
    parts = reply.text.strip().rstrip(".").replace("and", ",").replace("None", "").split(",")
    words = [part.strip() for part in parts if part.strip()]
    return tuple(map(int, words)) if all(word.isdecimal() for word in words) else None


def _cost(judge: Judge, latents: int, buffer: int) -> Cost:
    text = "x" * (6 * (2 * buffer + 1))
    count = TOP - TOP_SHOWN + WEIGHTED - WEIGHTED_SHOWN + RANDOM
    one = judge.cost([explaining([text] * (TOP_SHOWN + WEIGHTED_SHOWN)), scoring(text, [text] * count)])
    return Cost(one.requests * latents, one.tokens * latents)


class Interpretation(NamedTuple):
    """What a judge said of one feature."""

    feature: int
    words: str | None
    chosen: tuple[int, ...] | None
    """Numbers of the texts, from 1."""
    right: tuple[int, ...]
    texts: int

    @property
    def score(self) -> float | None:
        """Share of the texts that were rightly chosen or left out; None if no answer could be read."""
        if self.chosen is None:
            return None
        return float(np.mean([(n in self.chosen) == (n in self.right) for n in range(1, self.texts + 1)]))


@asking(_cost)
def autointerp_answers(
    interview: Interview, autointerp_examples: tuple[Examples, ...], latents: int, buffer: int
) -> tuple[Interpretation, ...]:
    """The judge's words for each feature, and the texts that it chooses by them."""
    prompts = [explaining([e.text(True) for e in own.shown]) for own in autointerp_examples]
    words = interview.ask(prompts, read_words).values
    explained = [(own, said) for own, said in zip(autointerp_examples, words, strict=True) if said is not None]
    tests = [scoring(said, [e.text(False) for e in own.tested]) for own, said in explained]
    choices = interview.ask(tests, read_choice).values
    chosen = dict(zip([own.feature for own, _ in explained], choices, strict=True))
    return tuple(
        Interpretation(
            own.feature, said, chosen.get(own.feature),
            tuple(n for n, e in enumerate(own.tested, 1) if any(e.active)), len(own.tested),
        )
        for own, said in zip(autointerp_examples, words, strict=True)
    )  # fmt: skip


class SAEBenchAutointerp(Metric):
    """SAEBench's detection score: how often a judge that wrote a feature's explanation tells in which texts it fires.

    The numbers of SAEBench 0.6.0: features that fire on more than 15 tokens; 12 texts of 21 tokens (`buffer` on each
    side of one) with the largest activations and 7 drawn from the others in proportion to the square of the activation,
    of which 10 and 5 are explained and 2 and 2 tested; 10 random texts, which count as not active whatever the feature
    does there; a token is active above 0.01 of the largest activation; the share of right answers of 14; features
    without a readable answer are left out. The prompts have the same parts in other words, so a judge may answer
    differently. Draws are keyed, a row has one text of each kind at most, and an answer that cannot be read is asked
    for once more.

    Explained and tested texts may be of the same document, and there is no control: `detection` has both.

    Values:
        autointerp_score: mean share of right answers over features; share; 0 .. 1; higher is better.
        autointerp_std_dev: standard deviation of that share over features; share; ≥ 0; no better direction.
        unread: share of the features without a readable answer; share; 0 .. 1; lower is better.
        features: words, chosen and right texts, and the score of each feature, a table; share; 0 .. 1; no better
            direction.

    Claims:
        autointerp_score: the number that SAEBench would print with this judge; null: 10 of 14, by always answering
            None; needs: 20 features; 1 SAE; not: that the words are specific to the feature.
        autointerp_std_dev, unread: how features differ, and how far the judge can be relied on; null: none; needs: 2
            features; 1 SAE; not: a standard error.

    Source: SAEBench 0.6.0, sae_bench/evals/autointerp; Paulo et al. (2024, arXiv 2410.13928).
    """

    name = "saebench_autointerp"
    headline = ("autointerp_score",)
    value_names = ("autointerp_score", "autointerp_std_dev", "unread")

    def __init__(
        self, latents: Annotated[int, Field(ge=1)] = 1000, buffer: Annotated[int, Field(ge=0)] = 10, seed: int = 42
    ) -> None:
        self.latents, self.buffer, self.seed = latents, buffer, seed

    def conclude(self, autointerp_answers: tuple[Interpretation, ...]) -> dict[str, Value]:
        scores = np.array([own.score for own in autointerp_answers if own.score is not None])
        if not len(autointerp_answers):
            raise Undefined("no feature has enough texts")
        unread = 1 - len(scores) / len(autointerp_answers)
        n = len(scores)
        deviation = float(scores.std(ddof=1)) if n > 1 else float("nan")
        rows = [
            [own.feature, own.words, _numbers(own.chosen), _numbers(own.right), own.score]
            for own in autointerp_answers
        ]  # fmt: skip
        error = deviation / n**0.5 if n > 1 else None
        return {
            "autointerp_score": Scalar(float(scores.mean()), unit="share", better="higher", n=n, stderr=error)
            if n else Scalar.undefined("no answer could be read", unit="share", better="higher"),
            "autointerp_std_dev": Scalar(
                deviation, unit="share", n=n, reason=None if n > 1 else "fewer than two features have an answer"
            ),
            "unread": Scalar(unread, unit="share", better="lower", n=len(autointerp_answers), proportion=True),
            "features": Table(["feature", "words", "chosen", "right", "score"], rows),
        }  # fmt: skip


def _numbers(numbers: Sequence[int] | None) -> str | None:
    return None if numbers is None else ", ".join(map(str, numbers)) or "None"
