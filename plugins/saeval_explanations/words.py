"""The words for each sampled feature: the judge's, the user's, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saeval.plugin import Cost, Interview, Judge, asking, rebound
from saeval_explanations.given import given_words
from saeval_explanations.passages import SPREAD, STRONGEST
from saeval_explanations.prompts import explaining, read_words
from saeval_explanations.sampling import SampledFeatures
from saeval_explanations.tokens import TokenModel
from saeval_explanations.windows import AFTER, BEFORE, Window, Windows

_BYTES_OF_TOKEN = 6
"""Length of a token with its share of marks and quotes, for the estimate of costs."""


@dataclass(frozen=True)
class Words:
    """What each sampled feature means."""

    words: tuple[str | None, ...]
    """None if no answer could be read."""
    windows: tuple[tuple[Window, ...], ...]
    """The windows of the fit split that were shown for each feature."""
    source: str
    """`judge` or `file`."""


def shown_windows(
    explaining_windows: dict[str, Windows], shown: int, token_text: Callable[[Sequence[int]], list[str]]
) -> tuple[tuple[Window, ...], ...]:
    """The windows that explain each sampled feature: half the strongest, the others over all activations; `shown`."""
    strongest, spread = explaining_windows[STRONGEST], explaining_windows[SPREAD]
    chosen = []
    for number in range(len(strongest)):
        first = list(strongest.windows(number, token_text))
        top = first[: (shown + 1) // 2]
        rows = {window.row for window in top}
        others = [w for w in spread.windows(number, token_text) if w.row not in rows][: shown - len(top)]
        # Where few other rows have the feature, more of the strongest.
        rows |= {window.row for window in others}
        more = [w for w in first if w.row not in rows][: shown - len(top) - len(others)]
        chosen.append((*top, *more, *sorted(others, key=lambda w: -abs(w.activation))))
    return tuple(chosen)


def text_of_length(tokens: int) -> str:
    """Return a text as long as one of some tokens may be, for the estimate of costs."""
    return "x" * (_BYTES_OF_TOKEN * tokens)


def _cost(judge: Judge, features: int, shown: int, path: str | None = None) -> Cost:
    window = Window(0, 0, 0, [(text_of_length(BEFORE + 1 + AFTER), 1.0)], 1.0)
    return judge.cost([explaining([window] * shown)] * features) if path is None else Cost(0, 0)


@asking(_cost)
def explanations(
    interview: Interview,
    shown_windows: tuple[tuple[Window, ...], ...],
    features: int,
    shown: int,
) -> Words:
    """The judge's words for each sampled feature, from windows of the fit split."""
    answers = interview.ask([explaining(windows) for windows in shown_windows], read_words)
    return Words(tuple(answers.values), shown_windows, "judge")


def explanations_given(
    sampled_features: SampledFeatures, shown_windows: tuple[tuple[Window, ...], ...], sae_name: str, path: str
) -> Words:
    """The user's words for each sampled feature, from the file `path`."""
    words = given_words(Path(path), sae_name)
    return Words(tuple(words.get(int(feature)) for feature in sampled_features.features), shown_windows, "file")


def _source(path: str | None = None) -> str:
    return "explanations" if path is None else "explanations_given"


@rebound(words=_source)
def tested_words(words: Words) -> Words:
    """The words to test for each sampled feature: those of the file `path`, or else the judge's."""
    return words


def list_in_words(feature: int, token_model: TokenModel, token_text: Callable[[Sequence[int]], list[str]]) -> str:
    """Return a feature's list of tokens as an explanation."""
    texts = [token_text([int(token)])[0] for token in token_model.lists[feature]]
    return "one of the tokens " + ", ".join(f'"{text}"' for text in texts)
