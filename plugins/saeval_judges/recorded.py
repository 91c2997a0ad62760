"""`recorded`: answers from a file, or from the folder of answers that a run has kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saeval.plugin import Judge, Prompt, Reply, SaevalError, digest_of, expand_user, formatting, read_text, searched_in

Messages = tuple[tuple[str, str], ...]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    role: str
    content: str


class _Prompt(BaseModel):
    model_config = ConfigDict(extra="forbid")

    messages: list[tuple[str, str]] = Field(min_length=1)
    max_tokens: int
    repeat: int = 0
    attempt: int = 0


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    complete: bool = True
    prompt_tokens: int | None = None
    reply_tokens: int | None = None


class _Kept(BaseModel):
    """A record that a run has written."""

    model_config = ConfigDict(extra="forbid")

    prompt: _Prompt
    reply: _Reply


class _Written(BaseModel):
    """A record that a person has written."""

    model_config = ConfigDict(extra="forbid")

    messages: list[_Message | tuple[str, str]] = Field(min_length=1)
    reply: str
    repeat: int = 0


class _Question(NamedTuple):
    """What a record answers."""

    messages: Messages
    repeat: int
    max_tokens: int | None
    """None for a record that answers whatever the limit is."""
    attempt: int = 0


class Recorded(Judge):
    """Replays answers, for papers and tests: the same answers on every machine, without a model or a network.

    `path` is the folder `judge` in the results of a run, or a JSON Lines file. A line is a record of such a folder,
    `{"prompt": {"messages": [["user", "..."]], "max_tokens": 8, "repeat": 0, "attempt": 0}, "reply": {"text": "..."}}`,
    or `{"messages": [{"role": "user", "content": "..."}], "reply": "..."}`, which answers these messages whatever the
    limit of the reply's tokens is; `"repeat": 1` is the answer to the second of repeated questions. If a second
    attempt is not recorded, it is answered like the first. The judge's identity is a hash of the records.
    """

    name = "recorded"

    def __init__(self, path: Path) -> None:
        self.path = expand_user(path)
        if not self.path.exists():
            raise SaevalError(f"{path} does not exist{searched_in(path)}; expected the recorded answers of a judge")

    def identity(self) -> Mapping[str, Any]:
        return {"records": self._digest}

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        found = [self._recorded(prompt) for prompt in prompts]
        yield from ((place, reply) for place, reply in enumerate(found) if reply is not None)
        missing = [prompt for prompt, reply in zip(prompts, found) if reply is None]
        if missing:
            shown = " ".join(missing[0].messages[-1][1].split())
            of_first = f"the first is '{shown[:60]}...'" if len(shown) > 60 else f"the first is '{shown}'"
            repeat = f", repeat {missing[0].repeat}" if missing[0].repeat else ""
            of = formatting.counted(len(prompts), "prompt")
            raise SaevalError(
                f"{self.path} has no answer to {len(missing)} of {of} ({of_first}{repeat}); "
                "replay the suite that it was recorded with, or ask a judge that answers new prompts"
            )

    def _recorded(self, prompt: Prompt) -> Reply | None:
        messages = tuple((role, content) for role, content in prompt.messages)
        limits: tuple[int | None, ...] = (prompt.max_tokens, None)
        attempts = dict.fromkeys((prompt.attempt, 0))
        questions = (_Question(messages, prompt.repeat, limit, n) for limit in limits for n in attempts)
        return next((self._records[q] for q in questions if q in self._records), None)

    @cached_property
    def _digest(self) -> str:
        """The hash of the distinct records: it does not depend on their order, or on which form they have.

        Nor on second attempts that are answered like the first, since a run that replays a folder may keep them in it.
        """
        records = self._records.items()
        distinct = [(q, r) for q, r in records if q.attempt == 0 or self._records.get(q._replace(attempt=0)) != r]
        return digest_of(sorted(json.dumps([q, r]) for q, r in distinct))

    @cached_property
    def _records(self) -> dict[_Question, Reply]:
        records: dict[_Question, Reply] = {}
        for where, text in self._texts():
            question, reply = _read(text, where)
            if records.setdefault(question, reply) != reply:
                raise SaevalError(f"{where} answers the same prompt as an earlier record, but differently; remove one")
        if not records:
            raise SaevalError(f"{self.path} holds no recorded answers; expected JSON Lines, or the folder of a run's")
        return records

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Yield the place and the text of each record."""
        if self.path.is_dir():
            for file in sorted(self.path.glob("*/*.json")):
                yield str(file), read_text(file)
        else:
            for number, line in enumerate(read_text(self.path).split("\n"), 1):
                if line.strip():
                    yield f"{self.path}:{number}", line


def _read(text: str, where: str) -> tuple[_Question, Reply]:
    try:
        record = json.loads(text)
        if isinstance(record, dict) and "prompt" in record:
            kept = _Kept.model_validate(record)
            prompt = kept.prompt
            question = _Question(tuple(prompt.messages), prompt.repeat, prompt.max_tokens, prompt.attempt)
            return question, Reply(**kept.reply.model_dump())
        written = _Written.model_validate(record)
    except (ValueError, RecursionError) as error:
        fault = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            fault = f"'{'.'.join(map(str, first['loc']))}': {first['msg'].lower()}" if first["loc"] else first["msg"]
        raise SaevalError(
            f'{where} is not a recorded answer ({fault}); expected {{"prompt": {{...}}, "reply": {{...}}}} or '
            '{"messages": [...], "reply": "..."}'
        ) from None
    messages = tuple((m.role, m.content) if isinstance(m, _Message) else m for m in written.messages)
    return _Question(messages, written.repeat, None), Reply(written.reply)
