"""Judges: language models, or files of their answers, that are asked about windows of text; and how they are asked."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from saeval.base.errors import SaevalError
from saeval.base.fingerprint import digest_of
from saeval.base.formatting import counted
from saeval.base.stateless import Stateless
from saeval.base.whole_files import FREE_SPACE, write_whole

T = TypeVar("T")
_ATTEMPTS = 2
"""Number of times that a prompt is asked whose answer cannot be read."""
_AGAIN = "Answer in exactly this form, and with nothing else."
"""What a second attempt says in addition, since a model without chance would answer the same again."""


class Prompt(NamedTuple):
    """One question to a judge."""

    messages: tuple[tuple[str, str], ...]
    """(role, content) of each message; roles are `system`, `user` and `assistant`."""
    max_tokens: int
    """Largest number of tokens of the reply."""
    repeat: int = 0
    """Prompts that differ in this number alone are asked separately, to measure how the judge's answers vary."""
    attempt: int = 0
    """1 for the second attempt, after an answer that could not be read."""

    @property
    def conversation(self) -> tuple[tuple[str, str], ...]:
        """The messages as a model gets them: a second attempt asks for the form once more."""
        *before, (role, content) = self.messages
        return (*before, (role, f"{content}\n\n{_AGAIN}")) if self.attempt else self.messages


class Reply(NamedTuple):
    """What a judge answered."""

    text: str
    complete: bool = True
    """False if the reply was cut short, as by `max_tokens`."""
    prompt_tokens: int | None = None
    reply_tokens: int | None = None


class Cost(NamedTuple):
    """What questions to a judge cost: at most, before they are asked."""

    requests: int
    tokens: int
    """Tokens of prompts and of the longest replies, by `Judge.length`."""

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.requests + other.requests, self.tokens + other.tokens)


class Judge(Stateless, ABC):
    """Answers prompts; chosen by `use:` in a suite's `judge:`. `__init__` is the schema of its YAML parameters.

    saeval itself keeps replies, asks again for those that cannot be read, and holds the budget, so that a judge only
    has to answer. A secret, such as an API key, comes from the environment, never from a parameter.
    """

    name: ClassVar[str]
    """The name that `use:` selects."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Return plain data that determine the replies, such as the model and the temperature, without any secret.

        They are part of the keys of results and of kept replies, and are recorded with the results.
        """

    @abstractmethod
    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """Yield the index of a prompt and its reply, each as soon as it is there, in any order.

        Raise `SaevalError` if the judge cannot be reached, after its own retries. saeval keeps what was yielded before.
        """

    def check(self) -> None:
        """Raise `SaevalError` if it cannot be used, such as without its key or file; called before the run."""

    def fetch(self) -> None:
        """Download what it needs, so that it can answer offline."""

    def close(self) -> None:
        """Release what it holds to answer, such as a model's weights; called when a run ends."""

    def length(self, text: str) -> int:
        """Return the number of tokens of a text, for the estimate of what a run costs; by default bytes / 4."""
        return math.ceil(len(text.encode()) / 4)

    def cost(self, prompts: Iterable[Prompt]) -> Cost:
        """Return the number of prompts, and their tokens with the longest replies."""
        total = Cost(0, 0)
        for prompt in prompts:
            total += Cost(1, sum(self.length(text) for _, text in prompt.messages) + prompt.max_tokens)
        return total


class Budget(NamedTuple):
    """The most that a run may ask of its judge; None: no limit."""

    max_requests: int | None = None
    max_tokens: int | None = None

    def excess(self, cost: Cost) -> str | None:
        """Return in words what exceeds the budget; None if nothing does."""
        if self.max_requests is not None and cost.requests > self.max_requests:
            return f"{counted(cost.requests, 'request')} of 'max_requests: {self.max_requests}'"
        if self.max_tokens is not None and cost.tokens > self.max_tokens:
            return f"{counted(cost.tokens, 'token')} of 'max_tokens: {self.max_tokens}'"
        return None


@dataclass(frozen=True)
class Answers(Generic[T]):
    """The answers to some prompts, in their order."""

    values: list[T | None]
    """None for a prompt of which no answer could be read."""
    texts: list[str]
    """The last reply to each prompt."""

    @property
    def unread(self) -> int:
        """Number of prompts of which no answer could be read."""
        return sum(value is None for value in self.values)


class Interview:  # no dataclass: the engine compares the fields of these, and a reply changes what is kept
    """Asks the judge of a suite, and keeps each reply in a file as soon as it is there.

    A prompt that was answered before, also by an earlier run that was killed, is not asked again.
    """

    def __init__(self, judge: Judge, budget: Budget | None = None, folder: Path | None = None) -> None:
        self.judge = judge
        self.budget = budget or Budget()
        self.folder = folder
        """Folder of the kept replies, set when the run begins; None: replies are kept in memory alone."""
        self.spent = Cost(0, 0)
        """What was asked and not found among the kept replies."""
        self.kept: dict[str, Reply] = {}

    def __repr__(self) -> str:  # part of the keys of what is computed from answers
        return f"Interview({self.digest})"

    @property
    def digest(self) -> str:
        """Identifies what determines the replies."""
        return digest_of([type(self.judge).name, dict(self.judge.identity())])

    def ask(self, prompts: Sequence[Prompt], read: Callable[[Reply], T | None]) -> Answers[T]:
        """Return the judge's answers. `read` returns the answer in a reply, or None if there is none.

        A prompt of which no answer can be read is asked once more. `SaevalError` if the judge cannot be reached or
        the budget is spent; all replies until then are kept.
        """
        values: list[T | None] = [None] * len(prompts)
        texts, waiting = [""] * len(prompts), list(range(len(prompts)))
        for attempt in range(_ATTEMPTS):
            asked = {place: prompts[place]._replace(attempt=attempt) for place in waiting}
            replies = self._replies(list(dict.fromkeys(asked.values())))
            for place, prompt in asked.items():
                values[place], texts[place] = read(replies[prompt]), replies[prompt].text
            waiting = [place for place in waiting if values[place] is None]
        return Answers(values, texts)

    def _replies(self, prompts: Sequence[Prompt]) -> dict[Prompt, Reply]:
        found = {prompt: reply for prompt in prompts if (reply := self._known(prompt)) is not None}
        missing = [prompt for prompt in prompts if prompt not in found]
        if not missing:
            return found
        if excess := self.budget.excess(self.spent + self.judge.cost(missing)):
            raise SaevalError(f"the judge's budget does not suffice: {excess}; raise it, or choose fewer features")
        for index, answered in self.judge.replies(missing):
            prompt, text = missing[index], answered.text.encode(errors="replace").decode()
            reply = answered._replace(text=text)  # half of a pair of surrogates cannot be stored
            tokens = [reply.prompt_tokens, reply.reply_tokens]
            used = (
                sum(t for t in tokens if t is not None) if tokens[0] is not None else self.judge.cost([prompt]).tokens
            )
            self.spent += Cost(1, used)
            self._keep(prompt, reply)
            found[prompt] = reply
        if unanswered := [prompt for prompt in missing if prompt not in found]:
            raise SaevalError(f"the judge did not answer {counted(len(unanswered), 'prompt')}")
        return found

    def _key(self, prompt: Prompt) -> str:
        return digest_of([self.digest, [list(message) for message in prompt.messages], *prompt[1:]])

    def _file(self, key: str) -> Path | None:
        return self.folder / key[:2] / f"{key[2:34]}.json" if self.folder is not None else None

    def _known(self, prompt: Prompt) -> Reply | None:
        key = self._key(prompt)
        if key not in self.kept and (file := self._file(key)) is not None:
            try:
                stored = json.loads(file.read_text(encoding="utf-8"))
                self.kept[key] = Reply(**stored["reply"])
            except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: it is asked
                return None
        return self.kept.get(key)

    def _keep(self, prompt: Prompt, reply: Reply) -> None:
        key = self._key(prompt)
        self.kept[key] = reply
        if (file := self._file(key)) is not None:
            record = {"prompt": prompt._asdict(), "reply": reply._asdict()}
            content = json.dumps(record, ensure_ascii=False) + "\n"  # one line: joined files are JSON Lines
            write_whole(file, content.encode(), f"{FREE_SPACE} --out")
