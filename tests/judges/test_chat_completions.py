"""The judge `openai` against a server that fails in every way that servers do."""

from __future__ import annotations

import logging
import threading
import traceback

import pytest

from chat_server import Answer, error
from saeval.plugin import Prompt, SaevalError
from saeval.testing.claims import every, none, some
from saeval_judges.chat_completions import ChatCompletions


def prompts_of(texts):
    return [Prompt((("user", text),), 5) for text in texts]


def test_a_request_says_what_the_judge_was_given_and_a_reply_what_came(ask, server, key):
    replies = ask("is it so", temperature=0.5)
    (request,) = server.requests
    assert request == {
        "model": "m", "temperature": 0.5, "max_tokens": 7,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "is it so"}],
    }  # fmt: skip
    assert server.headers[0]["authorization"] == f"Bearer {key}"
    assert replies["is it so"] == ("yes", True, 5, 1)


def test_newer_models_want_another_name_of_the_limit_and_no_temperature(ask, server):
    ask("a", temperature=None, length_parameter="max_completion_tokens")
    assert {"max_completion_tokens": 7}.items() <= server.requests[0].items()
    assert not {"max_tokens", "temperature"} & server.requests[0].keys()


def test_a_server_without_keys_gets_none(ask, server, key):
    ask("a", api_key_variable=None)
    assert key not in server.headers[0]["authorization"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_passing_failure_is_retried_with_growing_pauses(ask, server, waits, status):
    server.answers = [error(status)] * 3
    assert ask("a", retries=3)["a"].text == "yes"
    assert len(server.requests) == 4
    for doubled, wait in zip((0.5, 1, 2), some(waits), strict=True):
        assert 0.75 * doubled <= wait <= doubled


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_is_asked_then(ask, server, waits, status):
    server.answers = [error(status, Retry_After="17"), error(status, retry_after_ms="250")]
    assert ask("a", retries=2)["a"].text == "yes"
    assert waits == [17, 0.25]


def test_a_server_that_hangs_is_asked_again(ask, server, waits):
    server.answers = [Answer(hangs=True)]
    assert ask("a", timeout=0.3, retries=1)["a"].text == "yes"
    assert len(server.requests) == 2
    server.answers = [Answer(hangs=True)] * 2
    with pytest.raises(SaevalError, match=r"m at http://\S+ did not answer within 0\.3 s \(asked 2 times\); raise 't"):
        ask("a", timeout=0.3, retries=1)


BROKEN = [
    Answer(body='{"choices": [{"mess'),
    Answer(body="<html>welcome</html>", kind="text/html"),
    Answer(body="{}"),
    Answer(body='{"choices": []}'),
    Answer(body='{"choices": [{"index": 0}]}'),
    Answer(body="[1]"),
    Answer(body=""),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_completion_is_asked_for_once_more(ask, server, broken):
    server.answers = [broken]
    assert ask("a")["a"].text == "yes"
    server.answers = [broken] * 2
    with pytest.raises(SaevalError, match="does not answer with a chat completion; check 'base_url'"):
        ask("a")
    assert len(server.requests) == 4


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_reply_that_was_cut_short_says_so(ask, server, reason):
    server.answers = [Answer("ye", reason=reason)]
    assert ask("a")["a"] == ("ye", False, 3, 1)


def test_a_refusal_is_an_empty_reply(ask, server):
    body = '{"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": null}}]}'
    server.answers = [Answer(body=body)]
    assert ask("a")["a"] == ("", True, None, None)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "check 'model', 'base_url' and 'length_parameter'"),
        (401, "check the key in OPENAI_API_KEY"),
        (404, "check 'model', 'base_url'"),
        (429, r"asked 2 times\): .*; check the account's limits, lower 'concurrency', or wait"),
        (500, r"asked 2 times\): .*; try again later"),
    ],
)
def test_no_failure_shows_the_key_though_the_server_returns_it(ask, server, key, waits, caplog, status, remedy):
    server.reply = lambda request: error(status, f"bad\nkey {key} {'x' * 500}")
    with caplog.at_level(logging.DEBUG), pytest.raises(SaevalError, match=remedy) as caught:
        ask("a", retries=1)
    message = str(caught.value)
    assert f"judge 'openai': m at {server.base_url} answered with status {status}" in message
    assert "\n" not in message
    assert "bad key (the key) xxx" in message
    assert len(message) < 600
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    shown = ["".join(traceback.format_exception(caught.value)), *(str(vars(record)) for record in caplog.records)]
    assert none(key in text for text in some(shown))


def test_a_reply_that_holds_the_key_is_kept_without_it(ask, server, key):
    server.answers = [Answer(f"you said {key}")]
    assert ask("a")["a"].text == "you said (the key)"


def test_a_server_that_is_not_there_is_named(ask, key, waits):
    with pytest.raises(
        SaevalError, match=r"m at http://127\.0\.0\.1:9/v1 cannot be reached \(asked 3 times\): .*refused"
    ):
        ask("a", base_url="http://127.0.0.1:9/v1/", retries=2)
    assert len(waits) == 2


def test_a_failure_cancels_what_waits_and_keeps_what_came(server, key):
    server.answers = [Answer(), Answer(), error(400)]
    judge = ChatCompletions("m", server.base_url, concurrency=1)
    arrived = judge.replies(prompts_of("abcdefgh"))
    assert [next(arrived)[0], next(arrived)[0]] == [0, 1]
    with pytest.raises(SaevalError, match="replies that arrived are kept, and the next run asks for the others"):
        next(arrived)
    assert server.asked == ["a", "b", "c"]


def test_requests_that_are_open_at_a_failure_still_arrive(server, key):
    met, held = threading.Barrier(2), threading.Event()

    def reply(request):
        met.wait(5)
        if request["messages"][0]["content"] == "a":
            return error(400)
        held.wait(0.2)  # time for the failure to arrive first
        return Answer()

    server.reply = reply
    arrived = ChatCompletions("m", server.base_url, concurrency=2).replies(prompts_of("ab"))
    assert next(arrived)[0] == 1
    with pytest.raises(SaevalError, match="status 400"):
        next(arrived)


def test_as_many_requests_are_open_as_concurrency_says(server, key):
    met = threading.Barrier(3)

    def reply(request):
        met.wait(5)  # breaks if fewer than three come together
        return Answer()

    server.reply = reply
    judge = ChatCompletions("m", server.base_url, concurrency=3, retries=0)
    assert sorted(place for place, _ in judge.replies(prompts_of("abcdefghi"))) == list(range(9))
    assert server.most_open == 3


def test_replies_come_as_they_finish(server, key):
    held = threading.Event()

    def reply(request):
        assert request["messages"][0]["content"] != "a" or held.wait(5)
        return Answer()

    server.reply = reply
    arrived = ChatCompletions("m", server.base_url, concurrency=2).replies(prompts_of("abcd"))
    assert sorted(next(arrived)[0] for _ in range(3)) == [1, 2, 3]
    held.set()
    assert [place for place, _ in arrived] == [0]


def test_who_stops_listening_stops_the_requests(server, key):
    arrived = ChatCompletions("m", server.base_url, concurrency=1).replies(prompts_of("abcdefgh"))
    next(arrived)
    arrived.close()
    assert len(server.requests) < 4


WRONG = {
    "user": ({"base_url": "https://me:pass@host/v1"}, "must have no user, password or query"),
    "query": ({"base_url": "https://host/v1?key=pass"}, "must have no user, password or query"),
    "scheme": ({"base_url": "ftp://host/v1"}, "is not an address like https://host/v1, got 'ftp://host/v1'"),
    "port": ({"base_url": "http://host:port/v1"}, "is not an address like"),
    "host": ({"base_url": "https:///v1"}, "is not an address like"),
    "key": ({"api_key_variable": "sk-pass-1234"}, "is the name of an environment variable, in capitals"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_secret_in_a_parameter_is_refused_without_showing_it(case):
    parameters, sentence = WRONG[case]
    with pytest.raises(SaevalError, match=sentence) as caught:
        ChatCompletions("m", **parameters)
    assert "pass" not in str(caught.value).replace("password", "")


def test_the_check_names_what_is_missing(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SaevalError, match="from the environment variable OPENAI_API_KEY, which is not set; set it, or"):
        ChatCompletions("m").check()
    ChatCompletions("m", api_key_variable=None).check()
    monkeypatch.setenv("MY_KEY", "k")
    ChatCompletions("m", api_key_variable="MY_KEY").check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SaevalError, match=r"needs the openai client; pip install 'saeval\[openai\]'"):
        ChatCompletions("m", api_key_variable=None).check()


def test_the_identity_holds_what_decides_and_no_secret(key):
    judge = ChatCompletions("m", "https://host/v1/", temperature=0.25, retries=1, timeout=3, concurrency=9)
    assert judge.identity() == {"model": "m", "base_url": "https://host/v1", "temperature": 0.25}
    assert every(key not in str(value) for value in vars(judge).values())
