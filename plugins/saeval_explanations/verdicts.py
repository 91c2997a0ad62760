"""The judge's verdicts on windows that it has not seen: does the feature fire there, are these its tokens?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from saeval.plugin import Cost, Interview, Judge, Prompt, asking, hashed
from saeval_explanations.passages import NEAR, SILENT, SPREAD
from saeval_explanations.prompts import detecting, fuzzing, marked, read_numbers
from saeval_explanations.sampling import SampledFeatures, in_decile
from saeval_explanations.tokens import TokenModel
from saeval_explanations.windows import AFTER, BEFORE, Window, Windows
from saeval_explanations.words import Words, list_in_words, text_of_length

OWN, SHUFFLED, TOKENS = "own", "shuffled", "tokens"
"""Whose words are tested: the feature's, those of another feature of its tenth by density, its list of tokens."""
RIGHT, WRONG = "right", "wrong"
"""Kinds of windows of `fuzzing`: with the tokens marked on which the feature fires, or as many others."""
_WORDS_OF_COST = 60
"""Length of an explanation for the estimate of costs, in tokens."""

Asked = Callable[[str, Sequence[str]], Prompt]


class Case(NamedTuple):
    """A window as it is shown to the judge, and the truth about it."""

    window: Window
    kind: str
    text: str
    fires: bool


@dataclass(frozen=True)
class Verdicts:
    """The judge's numbers for the cases of each feature, by whose words were tested."""

    cases: tuple[tuple[Case, ...], ...]
    scores: Mapping[str, tuple[Float[np.ndarray, "cases"], ...]]
    """By whose words, and `own 1`, `own 2`, ... for repeats: 0 to 10 for each case of each feature; NaN if unread."""

    def truths(self, feature: int) -> Bool[np.ndarray, "cases"]:
        """Return for each case of a feature whether the feature fires, or the marks are right."""
        return np.array([case.fires for case in self.cases[feature]], dtype=bool)

    def kinds(self, feature: int) -> list[str]:
        """Return the kind of each case of a feature."""
        return [case.kind for case in self.cases[feature]]


def detection_cases(
    testing_windows: dict[str, Windows],
    sampled_features: SampledFeatures,
    windows: int,
    seed: int,
    token_text: Callable[[Sequence[int]], list[str]],
) -> tuple[tuple[Case, ...], ...]:
    """For each sampled feature, windows in which it fires and as many in which it does not, in random order.

    Half of the silent ones are around a token on which its nearest feature fires, as far as there are such.
    """
    found, half = [], windows // 2
    for number, feature in enumerate(sampled_features.features):
        of_kind = {kind: list(own.windows(number, token_text)) for kind, own in testing_windows.items()}
        cases = [Case(w, SPREAD, w.text, True) for w in of_kind[SPREAD][:half]]
        near = [Case(w, NEAR, w.text, False) for w in of_kind[NEAR][: half // 2]]
        rows = {case.window.row for case in near}
        silent = [Case(w, SILENT, w.text, False) for w in of_kind[SILENT] if w.row not in rows]
        found.append(_shuffled([*cases, *near, *silent[: half - len(near)]], int(feature), seed))
    return tuple(found)


def fuzzing_cases(
    testing_windows: dict[str, Windows],
    sampled_features: SampledFeatures,
    windows: int,
    seed: int,
    token_text: Callable[[Sequence[int]], list[str]],
) -> tuple[tuple[Case, ...], ...]:
    """For each sampled feature, windows in which it fires: half with its tokens marked, half with as many others."""
    found = []
    for number, feature in enumerate(sampled_features.features):
        cases = []
        for place, window in enumerate(list(testing_windows[SPREAD].windows(number, token_text))[: windows // 2]):
            fires = np.array([act != 0 for _, act in window.tokens])
            silent = np.flatnonzero(~fires)
            if place % 2 and not len(silent):
                continue
            if place % 2:
                keys = hashed(seed, "wrong marks", int(feature), window.row, silent)
                fires = np.isin(np.arange(len(fires)), silent[np.argsort(keys)[: int(fires.sum())]])
            text = marked([text for text, _ in window.tokens], fires.tolist())
            cases.append(Case(window, WRONG if place % 2 else RIGHT, text, not place % 2))
        found.append(_shuffled(cases, int(feature), seed))
    return tuple(found)


def _shuffled(cases: Sequence[Case], feature: int, seed: int) -> tuple[Case, ...]:
    rows = np.array([case.window.row for case in cases], dtype=np.int64)
    kinds = np.array([case.fires for case in cases], dtype=np.int64)
    return tuple(cases[i] for i in np.argsort(hashed(seed, "order of cases", feature, rows, kinds), kind="stable"))


def _cost(
    ask: Asked, cases: int, judge: Judge, features: int, per_prompt: int, beside: Sequence[str], repeats: int
) -> Cost:
    text = text_of_length(BEFORE + 1 + AFTER)
    sizes = [len(part) for part in _parts(range(cases), per_prompt)]
    one = judge.cost(ask(text_of_length(_WORDS_OF_COST), [text] * size) for size in sizes)
    times = features * (1 + len(beside) + repeats)
    return Cost(one.requests * times, one.tokens * times)


def _detection_cost(
    judge: Judge, features: int, windows: int, per_prompt: int, beside: Sequence[str], repeats: int
) -> Cost:
    return _cost(detecting, 2 * (windows // 2), judge, features, per_prompt, beside, repeats)


def _fuzzing_cost(
    judge: Judge, features: int, windows: int, per_prompt: int, beside: Sequence[str], repeats: int
) -> Cost:
    return _cost(fuzzing, windows // 2, judge, features, per_prompt, beside, repeats)


def _parts(cases: Sequence[object], per_prompt: int) -> list[Sequence[object]]:
    return [cases[start : start + per_prompt] for start in range(0, len(cases), per_prompt)]


@asking(_detection_cost)
def detection_verdicts(
    interview: Interview, detection_cases: tuple[tuple[Case, ...], ...], asked_words: dict[str, list[str | None]],
    features: int, windows: int, per_prompt: int, beside: Sequence[str], repeats: int,
) -> Verdicts:  # fmt: skip
    """The judge's answer, by the words for each feature, whether it fires in each window."""
    return _asked(interview, detecting, detection_cases, asked_words, per_prompt)


@asking(_fuzzing_cost)
def fuzzing_verdicts(
    interview: Interview, fuzzing_cases: tuple[tuple[Case, ...], ...], asked_words: dict[str, list[str | None]],
    features: int, windows: int, per_prompt: int, beside: Sequence[str], repeats: int,
) -> Verdicts:  # fmt: skip
    """The judge's answer, by the words for each feature, whether the marked tokens are those on which it fires."""
    return _asked(interview, fuzzing, fuzzing_cases, asked_words, per_prompt)


def asked_words(
    tested_words: Words, sampled_features: SampledFeatures, token_model: TokenModel,
    token_text: Callable[[Sequence[int]], list[str]], beside: Sequence[str], repeats: int, seed: int,
) -> dict[str, list[str | None]]:  # fmt: skip
    """The words that the judge is asked about for each feature, by whose they are."""
    own = list(tested_words.words)
    words = {OWN: own} | {f"{OWN} {repeat}": own for repeat in range(1, repeats + 1)}
    if SHUFFLED in beside:
        other = in_decile(sampled_features, seed)
        words[SHUFFLED] = [own[j] if i != j else None for i, j in enumerate(other)]
    if TOKENS in beside:
        words[TOKENS] = [list_in_words(number, token_model, token_text) for number in range(len(sampled_features))]
    return words


def _asked(
    interview: Interview, ask: Asked, cases: tuple[tuple[Case, ...], ...], words: Mapping[str, list[str | None]],
    per_prompt: int,
) -> Verdicts:  # fmt: skip
    scores = {whose: tuple(np.full(len(own), np.nan) for own in cases) for whose in words}
    places = list(_places(ask, cases, words, per_prompt))
    for count in sorted({len(part) for *_, part in places}):  # replies are read by the number of cases
        group = [place for place in places if len(place[-1]) == count]
        answers = interview.ask([prompt for prompt, *_ in group], partial(read_numbers, count))
        for (_, whose, feature, part), numbers in zip(group, answers.values, strict=True):
            if numbers is not None:
                scores[whose][feature][part] = numbers
    return Verdicts(cases, scores)


def _places(
    ask: Asked, cases: tuple[tuple[Case, ...], ...], words: Mapping[str, list[str | None]], per_prompt: int
) -> Iterator[tuple[Prompt, str, int, list[int]]]:
    """Yield each prompt, with whose words it tests, of which feature, and on which of its cases."""
    for whose, of_features in words.items():
        repeat = int(whose.removeprefix(OWN) or 0) if whose.startswith(OWN) else 0
        for feature, said in enumerate(of_features):
            if said is None:
                continue
            for part in _parts(range(len(cases[feature])), per_prompt):
                numbers = [int(i) for i in part]  # type: ignore[call-overload]
                prompt = ask(said, [cases[feature][i].text for i in numbers])
                yield prompt._replace(repeat=repeat), whose, feature, numbers
