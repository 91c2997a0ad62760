"""Fixtures of the tests of judges."""

from __future__ import annotations

import pytest

from chat_server import ChatServer
from saeval.plugin import Prompt
from saeval_judges.chat_completions import ChatCompletions

KEY = "sk-Planted-4711-never-shown"


@pytest.fixture
def server():
    """A server without any misbehaviour."""
    started = ChatServer()
    yield started
    started.end()


@pytest.fixture
def key(monkeypatch):
    """The API key, in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


@pytest.fixture
def ask(server, key):
    """Asks the server these texts through the judge; returns the replies by text."""

    def asked(*texts, max_tokens=7, **parameters):
        judge = ChatCompletions(**{"model": "m", "base_url": server.base_url, **parameters})
        prompts = [Prompt((("system", "be brief"), ("user", text)), max_tokens) for text in texts]
        return {texts[place]: reply for place, reply in judge.replies(prompts)}

    return asked
