"""`huggingface`: a language model on this machine, by transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from saeval.plugin import Judge, ModelSpec, Prompt, Reply, SaevalError, out_of_memory, torch
from saeval_models.checkpoint import DType
from saeval_models.huggingface import HuggingFace
from saeval_models.library_errors import quietly

if TYPE_CHECKING:  # annotations only: transformers is slow to import
    from transformers import PreTrainedModel


class _Question(NamedTuple):
    """A prompt as the model reads it; equal ones are answered once, since decoding is greedy."""

    ids: tuple[int, ...]
    limit: int
    """The most tokens of the reply: also those that the model's context leaves."""


class LocalModel(Judge):
    """A language model that transformers loads, on this machine: greedy, in batches of `batch_size` prompts.

    `path`, `gguf_file`, `name`, `revision` and `dtype` are those of `model: {use: huggingface}`. `device` is a GPU by
    default, if torch has one. Messages are put into the tokenizer's chat template; if the template takes no system
    message, it is put before the user's. A model without a chat template reads the messages' texts, separated by blank
    lines. The model is loaded for the first question that a run has not kept an answer to, and released afterwards.
    """

    name = "huggingface"

    def __init__(
        self,
        path: str | None = None,
        gguf_file: str | None = None,
        name: str | None = None,
        revision: str | None = None,
        dtype: DType = "float32",
        device: str | None = None,
        batch_size: Annotated[int, Field(ge=1)] = 8,
    ) -> None:
        given = {"path": path, "gguf_file": gguf_file, "name": name, "revision": revision, "dtype": dtype}
        self.spec: ModelSpec = HuggingFace().spec({key: value for key, value in given.items() if value is not None})
        if self.spec.kind != "causal":
            raise SaevalError(f"'{self.spec.name}' is a reward model, which cannot answer; choose a language model")
        self.device, self.batch_size = device, batch_size

    def identity(self) -> Mapping[str, Any]:
        return {"model": self.spec.name, **self.spec.identity(), "tokenizer": self.spec.tokenizer_identity()}

    def check(self) -> None:
        _ = self._tokenizer
        try:
            torch.zeros(1, device=self._device)
        except Exception:  # torch raises many classes
            raise SaevalError(f"'device' of judge 'huggingface': torch cannot use '{self.device}' here") from None

    def fetch(self) -> None:
        self.spec.fetch()

    def close(self) -> None:
        vars(self).pop("_model", None)

    def length(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        places: dict[_Question, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(self._question(prompt), []).append(place)
        ordered = sorted(places, key=lambda q: (-q.limit, -len(q.ids), q.ids))  # the largest batch comes first
        for _, group in groupby(ordered, key=lambda q: q.limit):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                questions = alike[start : start + self.batch_size]
                for question, reply in zip(questions, self._answers(questions), strict=True):
                    yield from ((place, reply) for place in places[question])

    @property
    def _device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _tokenizer(self) -> Any:
        return self.spec.tokenizer()

    @cached_property
    def _model(self) -> PreTrainedModel:
        from transformers import GenerationConfig  # late: slow to import

        model: PreTrainedModel = self.spec.load(self._device).module  # type: ignore[attr-defined]
        own = getattr(model, "generation_config", None)
        ends = [getattr(own, "eos_token_id", None), self._tokenizer.eos_token_id]
        stops = sorted(
            {end for entry in ends for end in (entry if isinstance(entry, list) else [entry]) if end is not None}
        )
        padding = self._tokenizer.pad_token_id
        # A new one: that of the checkpoint may sample or punish repetition.
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=stops or None,
            pad_token_id=padding if padding is not None else next(iter(stops), 0),
        )  # fmt: skip
        return model

    def _question(self, prompt: Prompt) -> _Question:
        text, plain = self._text(prompt)
        # A template writes its special tokens itself.
        ids = tuple(self._tokenizer(text, add_special_tokens=plain, verbose=False).input_ids)
        room = prompt.max_tokens if self.spec.context is None else self.spec.context - len(ids)
        if room < 1 or not ids:
            raise SaevalError(
                f"judge 'huggingface': a prompt of {len(ids)} tokens leaves {self.spec.name}, whose context is "
                f"{self.spec.context} tokens, no room for a reply; choose a model with a longer context"
            )
        return _Question(ids, min(prompt.max_tokens, room))

    def _text(self, prompt: Prompt) -> tuple[str, bool]:
        """Return the text of a prompt, and True if no template made it."""
        if not getattr(self._tokenizer, "chat_template", None):
            return "\n\n".join(content for _, content in prompt.conversation) + "\n\n", True
        try:
            return self._templated(prompt.conversation), False
        except Exception:  # the template's own, such as for a system message
            (role, content), *others = prompt.conversation
            if role != "system" or not others:
                raise SaevalError(f"the chat template of {self.spec.name} refuses the judge's prompts") from None
            merged = [(others[0][0], f"{content}\n\n{others[0][1]}"), *others[1:]]
        try:
            return self._templated(merged), False
        except Exception as error:
            raise SaevalError(f"the chat template of {self.spec.name} refuses the judge's prompts: {error}") from None

    def _templated(self, messages: Sequence[tuple[str, str]]) -> str:
        begun = messages[-1][0] == "assistant"  # the reply continues it
        named = [{"role": role, "content": content} for role, content in messages]
        options = {"add_generation_prompt": not begun, "continue_final_message": begun, "tokenize": False}
        return str(self._tokenizer.apply_chat_template(named, **options))

    def _answers(self, questions: Sequence[_Question]) -> list[Reply]:
        """Return the replies to questions with the same limit."""
        try:
            return self._generated(questions)
        except Exception as error:
            if len(questions) == 1 or not out_of_memory(error):
                raise
        half = len(questions) // 2
        return [*self._answers(questions[:half]), *self._answers(questions[half:])]

    def _generated(self, questions: Sequence[_Question]) -> list[Reply]:
        model, config = self._model, self._model.generation_config
        longest = max(len(question.ids) for question in questions)
        rows = [[config.pad_token_id] * (longest - len(q.ids)) + list(q.ids) for q in questions]
        real = [[0] * (longest - len(q.ids)) + [1] * len(q.ids) for q in questions]
        with torch.inference_mode(), quietly():
            output = model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(real, device=model.device),
                max_new_tokens=questions[0].limit,
            )
        return [self._reply(q, row) for q, row in zip(questions, output[:, longest:].tolist(), strict=True)]

    def _reply(self, question: _Question, generated: list[int]) -> Reply:
        stops = set(self._model.generation_config.eos_token_id or ())
        end = next((place for place, token in enumerate(generated) if token in stops), None)
        text = self._tokenizer.decode(generated[:end], skip_special_tokens=True)
        return Reply(text, end is not None, len(question.ids), len(generated) if end is None else end + 1)
