"""The judge `recorded`: files by hand, the folder of a run, what is missing, and an identity that is the content's."""

from __future__ import annotations

import json

import pytest

from saeval.interfaces.judge import Interview
from saeval.plugin import Judge, Prompt, Reply, SaevalError
from saeval.testing.claims import some
from saeval_judges.recorded import Recorded

A, B = (("system", "s"), ("user", "a")), (("user", "b"),)


@pytest.fixture
def file(tmp_path):
    """Writes records as JSON Lines; returns the file."""

    def write(*records, name="answers.jsonl"):
        path = tmp_path / name
        path.write_text("\n\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
        return path

    return write


def kept(messages, text, max_tokens=5, **prompt):
    return {"prompt": {"messages": messages, "max_tokens": max_tokens, **prompt}, "reply": {"text": text}}


def texts(judge, *prompts):
    return {place: reply.text for place, reply in judge.replies(prompts)}


def test_answers_written_by_hand(file):
    path = file(
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "reply": "one"},
        {"messages": [["user", "b"]], "reply": "two"},
        {"messages": [["user", "b"]], "reply": "other", "repeat": 1},
    )
    prompts = [Prompt(A, 5), Prompt(A, 99, attempt=1), Prompt(B, 5), Prompt(B, 5, repeat=1)]
    assert texts(Recorded(path), *prompts) == {0: "one", 1: "one", 2: "two", 3: "other"}


def test_answers_that_a_run_has_kept(file):
    reply = {"text": "so", "complete": False, "prompt_tokens": 3, "reply_tokens": 4}
    path = file(
        kept(A, "first"), kept(A, "second", attempt=1), {"prompt": {"messages": B, "max_tokens": 5}, "reply": reply}
    )
    judge = Recorded(path)
    assert texts(judge, Prompt(A, 5), Prompt(A, 5, attempt=1)) == {0: "first", 1: "second"}
    assert dict(judge.replies([Prompt(B, 5, attempt=1)])) == {0: Reply("so", False, 3, 4)}


@pytest.mark.parametrize("prompt", [Prompt(A, 6), Prompt(A, 5, repeat=1), Prompt(B, 5), Prompt((A[1],), 5)])
def test_what_is_not_recorded_is_counted_and_what_is_comes_first(file, prompt):
    arrived = Recorded(file(kept(A, "yes"))).replies([prompt, Prompt(A, 5), prompt._replace(max_tokens=7)])
    assert next(arrived) == (1, Reply("yes"))
    with pytest.raises(
        SaevalError, match=r"answers\.jsonl has no answer to 2 of 3 prompts \(the first is '[ab]'(, repeat 1)?\)"
    ):
        next(arrived)


class Oracle(Judge):
    name = "oracle"

    def identity(self):
        return {}

    def replies(self, prompts):
        yield from ((place, Reply(f"{p.messages[-1][1]}{p.attempt}\u2028é\ud800")) for place, p in enumerate(prompts))


def test_the_folder_of_a_run_and_its_files_joined_replay_the_run(tmp_path):
    prompts = [Prompt(A, 5), Prompt(B, 5), Prompt(B, 5, repeat=1)]

    def read(reply):
        return reply.text if reply.text[0] == "a" or reply.text[1] == "1" else None

    asked = Interview(Oracle(), folder=tmp_path / "judge").ask(prompts, read)
    assert asked.values == ["a0\u2028é?", "b1\u2028é?", "b1\u2028é?"]
    files = sorted((tmp_path / "judge").glob("*/*.json"))
    assert len(files) == 5
    joined = tmp_path / "joined.jsonl"
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    judges = [Recorded(tmp_path / "judge"), Recorded(joined)]
    for judge in some(judges):
        assert Interview(judge).ask(prompts, read) == asked
    assert judges[0].identity() == judges[1].identity()


def test_a_replay_into_the_same_folder_does_not_change_its_identity(tmp_path):
    folder, prompts = tmp_path / "judge", [Prompt(A, 5), Prompt(B, 5)]
    Interview(Oracle(), folder=folder).ask(prompts, lambda reply: reply.text)
    before = Recorded(folder).identity()
    Interview(Recorded(folder), folder=folder).ask(prompts, lambda reply: None)
    assert len(list(folder.glob("*/*.json"))) == 6
    assert Recorded(folder).identity() == before


def test_the_identity_is_the_content_alone(file):
    one, two, other = kept(A, "yes"), kept(B, "no"), kept(B, "yes")
    first = Recorded(file(one, two)).identity()
    assert Recorded(file(two, one, one, name="b.jsonl")).identity() == first
    assert Recorded(file(one, other, name="c.jsonl")).identity() != first
    assert Recorded(file(one, name="d.jsonl")).identity() != first


WRONG = {
    "no JSON": ('{"messages"', r"answers\.jsonl:3 is not a recorded answer \(Expecting"),
    "no reply": ({"messages": A}, r":3 is not a recorded answer \('reply': field required\); expected"),
    "other key": ({"messages": A, "reply": "x", "model": "m"}, r"'model': extra inputs"),
    "list": ([1], "is not a recorded answer"),
    "number": ({"messages": A, "reply": 1}, r"'reply': input should be a valid string"),
    "no limit": ({"prompt": {"messages": A}, "reply": {"text": "x"}}, r"'prompt\.max_tokens': field required"),
    "no messages": ({"messages": [], "reply": "x"}, r"'messages': "),
    "contradiction": (kept(B, "no"), r":3 answers the same prompt as an earlier record, but differently; remove one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_named(file, case):
    record, sentence = WRONG[case]
    with pytest.raises(SaevalError, match=sentence):
        Recorded(file(kept(B, "yes"), record)).identity()


def test_nothing_recorded_is_refused(tmp_path, file):
    for path in (tmp_path, file("")):
        with pytest.raises(
            SaevalError, match="holds no recorded answers; expected JSON Lines, or the folder of a run's"
        ):
            Recorded(path).identity()
    with pytest.raises(SaevalError, match="does not exist"):
        Recorded(tmp_path / "nowhere")
