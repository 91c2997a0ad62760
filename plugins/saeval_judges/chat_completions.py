"""`openai`: any endpoint that speaks OpenAI's chat-completions protocol, by the openai client."""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from json import JSONDecodeError
from queue import SimpleQueue
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from saeval.plugin import Judge, Prompt, Reply, SaevalError, at_key

_HIDDEN = "(the key)"
_LONGEST = 200
"""Number of characters of a server's message that an error quotes."""
_NO_KEY = "none"
"""What the client sends in place of a key to a server that needs none."""
_SHORT = ("length", "content_filter")
"""The `finish_reason` of replies that were cut short."""


class ChatCompletions(Judge):
    """A language model behind an endpoint that speaks OpenAI's chat-completions protocol; needs `saeval[openai]`.

    `model` is the endpoint's name of it, and `base_url` the address up to `/v1`. `concurrency` requests are open at a
    time. The client repeats a request after 408, 409, 429, 5xx, a lost connection, or `timeout` seconds without an
    answer, up to `retries` times; it waits as long as the server's Retry-After says, else 0.5 s, and twice as long each
    time, up to 8 s. `temperature: null` leaves the temperature to the server. `length_parameter` is the name of the
    limit of a reply's tokens; newer models of OpenAI want `max_completion_tokens`.

    The key is read from the environment variable that `api_key_variable` names. `api_key_variable: null` is for servers
    that need none. The key is written nowhere.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.0,
        concurrency: Annotated[int, Field(ge=1, le=256)] = 4,
        retries: Annotated[int, Field(ge=0, le=1000)] = 8,
        timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0,
        api_key_variable: str | None = "OPENAI_API_KEY",
        length_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ) -> None:
        with at_key("base_url"):
            self.base_url = _address(base_url)
        # A key in its place must not appear in a message, so the value is not quoted.
        if api_key_variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_variable):
            with at_key("api_key_variable"):
                raise SaevalError(
                    "'api_key_variable' of judge 'openai' is the name of an environment variable, in capitals, such as "
                    "OPENAI_API_KEY; the key itself belongs into that variable, not into a suite"
                )
        self.model, self.temperature, self.length_parameter = model, temperature, length_parameter
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout
        self.api_key_variable = api_key_variable

    def identity(self) -> Mapping[str, Any]:
        return {"model": self.model, "base_url": self.base_url, "temperature": self.temperature}

    def check(self) -> None:
        if importlib.util.find_spec("openai") is None:
            raise SaevalError("judge 'openai' needs the openai client; pip install 'saeval[openai]'")
        if self.api_key_variable is not None and not self._key:
            raise SaevalError(
                f"judge 'openai' reads its key from the environment variable {self.api_key_variable}, which is not "
                "set; set it, or 'api_key_variable: null' if the server needs no key"
            )

    @property
    def _key(self) -> str:
        return os.environ.get(self.api_key_variable, "").strip() if self.api_key_variable is not None else ""

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        self.check()
        import openai  # late: it is an extra, and takes a second

        key = self._key
        client = openai.OpenAI(
            api_key=key or _NO_KEY, base_url=self.base_url, timeout=self.timeout, max_retries=self.retries
        )
        waiting, arrived = deque(enumerate(prompts)), SimpleQueue[tuple[int, Reply | str] | None]()

        def work() -> None:
            try:
                while waiting:
                    place, prompt = waiting.popleft()
                    answer = self._answer(client, key, prompt)
                    if isinstance(answer, str):
                        waiting.clear()  # the open requests end, since they may be paid for
                    arrived.put((place, answer))
            except IndexError:  # another thread took the last one
                pass
            finally:
                arrived.put(None)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.concurrency, len(prompts)))]
        failure, working = None, len(threads)
        try:
            for thread in threads:
                thread.start()
            while working:
                answer = arrived.get()
                if answer is None:
                    working -= 1
                elif isinstance(answer[1], Reply):
                    yield answer[0], answer[1]
                else:
                    failure = failure or answer[1]
        finally:  # also if the run is interrupted, which does not wait for open requests
            waiting.clear()
            client.close()
        if failure is not None:
            raise SaevalError(
                f"judge 'openai': {self.model} at {self.base_url} {failure}; replies that arrived are kept, and the "
                "next run asks for the others"
            )

    def _answer(self, client: Any, key: str, prompt: Prompt) -> Reply | str:
        """Return the reply to a prompt, or why there is none, in words without the key.

        Words rather than an exception: those of the client hold the request, with the key in its headers.
        """
        request = {
            "model": self.model,
            "messages": [{"role": role, "content": content} for role, content in prompt.conversation],
            self.length_parameter: prompt.max_tokens,
            **({"temperature": self.temperature} if self.temperature is not None else {}),
        }
        try:
            for _ in range(2):  # the client does not repeat what arrived whole
                with suppress(JSONDecodeError):
                    if (reply := _reply(client.chat.completions.create(**request), key)) is not None:
                        return reply
        except Exception as error:  # also of httpx and ssl, which the client does not wrap
            return self._fault(error, key)
        return "does not answer with a chat completion; check 'base_url', which often ends with /v1"

    def _fault(self, error: Exception, key: str) -> str:
        """Return in words why a request failed after all retries."""
        import openai  # late: as above

        times = f" (asked {self.retries + 1} times)" if self.retries else ""
        if isinstance(error, openai.APITimeoutError):
            return f"did not answer within {self.timeout:g} s{times}; raise 'timeout', or lower 'concurrency'"
        if isinstance(error, openai.APIStatusError):
            body = error.body if isinstance(error.body, dict) else {}
            said = _quoted(str(body.get("message") or error.message), key)
            repeated = times if error.status_code in (408, 409, 429) or error.status_code >= 500 else ""
            return f"answered with status {error.status_code}{repeated}: {said}; {self._remedy(error.status_code)}"
        reason = _quoted(str(error.__cause__ or error) or type(error).__name__, key)
        return f"cannot be reached{times}: {reason}; check 'base_url', and that the server runs"

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            of_key = f"the key in {self.api_key_variable}" if self.api_key_variable else "'api_key_variable'"
            return f"check {of_key}"
        if status == 429:
            return "check the account's limits, lower 'concurrency', or wait"
        return "try again later" if status >= 500 else "check 'model', 'base_url' and 'length_parameter'"


def _address(base_url: str) -> str:
    """Return the address without a slash at its end; `SaevalError` if it is none, or could hold a secret."""
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = parts.username is not None or parts.password is not None or bool(parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        usable, secret = False, "@" in base_url or "?" in base_url
    if secret:  # not quoted, since the address may hold a key
        raise SaevalError(
            "'base_url' of judge 'openai' must have no user, password or query, since suites and results are shared; "
            "a key belongs into the environment variable that 'api_key_variable' names"
        )
    if not usable:
        raise SaevalError(f"'base_url' of judge 'openai' is not an address like https://host/v1, got '{base_url}'")
    return base_url.rstrip("/")


def _reply(completion: Any, key: str) -> Reply | None:
    """Return the reply in a chat completion; None if it is not one, as after JSON that cannot be read."""
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        return None
    text, usage = getattr(message, "content", None), getattr(completion, "usage", None)
    if not isinstance(text, str):  # a refusal, or no tokens left after reasoning
        text = ""
    complete = getattr(choice, "finish_reason", None) not in _SHORT
    return Reply(_without(text, key), complete, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


def _count(usage: Any, name: str) -> int | None:
    count = getattr(usage, name, None)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def _without(text: str, key: str) -> str:
    """Return a text without the key: a server may return what it was sent, also as an answer, which is stored."""
    return text.replace(key, _HIDDEN) if key else text


def _quoted(text: str, key: str) -> str:
    """Return a server's message on one line, short and without the key."""
    line = " ".join(_without(text, key).split()).rstrip(".")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
