"""The judge `huggingface`: greedy replies of tiny models, in batches, with and without a chat template."""

from __future__ import annotations

import gc
import json
import logging
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from saeval.plugin import Prompt, SaevalError
from saeval.testing.architectures import CONTEXT, tiny_folder
from saeval.testing.claims import some
from saeval_judges.local_model import LocalModel

LENGTHS = (3, 5, 1, 12, 30)
TEMPLATE = (
    "{% for m in messages %}w1 {{ m.role }} w2 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w3{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family, made once."""
    made = {}

    def folder(family="gpt2"):
        if family not in made:
            made[family] = tiny_folder(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


@pytest.fixture
def templated(tmp_path):
    """A model whose tokenizer has a chat template."""

    def folder(template):
        tiny_folder(tmp_path, "llama")
        (tmp_path / "chat_template.jinja").write_text(template)
        return tmp_path

    return folder


def words(n, start=1):
    return " ".join(f"w{i}" for i in range(start, start + n))


def prompt_of(*contents, max_tokens=6, **named):
    return Prompt(tuple(zip(("system", "user")[-len(contents) :], contents)), max_tokens, **named)


@torch.no_grad()
def greedy(folder, text, steps):
    """The most likely next tokens, one full pass for each, and True if the last one ends the text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(text).input_ids
    for n in range(steps):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            return tokenizer.decode(ids[-1 - n : -1]), True
    return tokenizer.decode(ids[-steps:]), False


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_replies_are_greedy_whatever_the_batch_size(folders, family):
    folder = folders(family)
    prompts = [prompt_of(words(n)) for n in LENGTHS]
    expected = {place: greedy(folder, f"{words(n)}\n\n", 6) for place, n in enumerate(LENGTHS)}
    assert len(set(expected.values())) > 2
    for batch_size in (1, 2, 8):
        judge = LocalModel(path=str(folder), batch_size=batch_size)
        replies = dict(judge.replies(prompts))
        assert {place: (reply.text, reply.complete) for place, reply in replies.items()} == expected
        assert [replies[place].prompt_tokens for place in range(len(LENGTHS))] == list(LENGTHS)


def test_each_prompt_has_its_own_limit(folders):
    folder = folders()
    prompts = [prompt_of(words(4, i), max_tokens=i) for i in (1, 2, 5)]
    replies = dict(LocalModel(path=str(folder)).replies(prompts))
    for place, prompt in enumerate(some(prompts)):
        steps = prompt.max_tokens
        assert (replies[place].text, replies[place].complete) == greedy(folder, f"{words(4, steps)}\n\n", steps)
        assert replies[place].reply_tokens == steps


def test_the_context_limits_a_reply_and_refuses_a_prompt(folders):
    judge = LocalModel(path=str(folders()))
    replies = dict(judge.replies([prompt_of(words(CONTEXT - 2)), prompt_of(words(4))]))
    assert [replies[place].reply_tokens for place in (0, 1)] == [2, 6]
    with pytest.raises(
        SaevalError, match=f"a prompt of {CONTEXT} tokens leaves .*, whose context is {CONTEXT} tokens, no"
    ):
        list(judge.replies([prompt_of(words(CONTEXT))]))


def test_a_reply_ends_where_the_model_ends_it(tmp_path):
    folder = tiny_folder(tmp_path, "llama")
    text, _ = greedy(folder, f"{words(4)}\n\n", 6)
    ids = AutoTokenizer.from_pretrained(folder)(text).input_ids
    stop = next(n for n, token in enumerate(ids) if token not in ids[:n] and n > 0)
    GenerationConfig(eos_token_id=[ids[stop]], do_sample=True, repetition_penalty=9.0, max_length=2).save_pretrained(
        folder
    )
    (reply,) = dict(LocalModel(path=str(folder)).replies([prompt_of(words(4))])).values()
    assert reply == (" ".join(text.split()[:stop]), True, 4, stop + 1)


def test_equal_prompts_are_computed_once(folders, monkeypatch):
    judge, rows = LocalModel(path=str(folders())), []
    generate = judge._model.generate
    monkeypatch.setattr(
        judge._model, "generate", lambda **named: rows.append(len(named["input_ids"])) or generate(**named)
    )
    prompts = [prompt_of(words(3), repeat=n) for n in range(4)] + [prompt_of(words(2))]
    replies = dict(judge.replies(prompts))
    assert rows == [2]
    assert len({replies[place] for place in range(4)}) == 1


def test_a_batch_that_does_not_fit_is_halved(folders, monkeypatch):
    judge, rows = LocalModel(path=str(folders()), batch_size=5), []
    prompts = [prompt_of(words(n)) for n in LENGTHS]
    expected = dict(judge.replies(prompts))
    generate = judge._model.generate

    def small(**named):
        rows.append(len(named["input_ids"]))
        if rows[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**named)

    monkeypatch.setattr(judge._model, "generate", small)
    assert dict(judge.replies(prompts)) == expected
    assert rows == [5, 2, 3, 1, 2]


def test_a_chat_template_is_used(templated):
    folder = templated(TEMPLATE)
    (reply,) = dict(LocalModel(path=str(folder)).replies([prompt_of("w7", "w8")])).values()
    assert (reply.text, reply.complete) == greedy(folder, "w1 system w2 w7 w1 user w2 w8 w3", 6)


def test_a_template_without_a_system_message_gets_it_before_the_users(templated):
    folder = templated(NO_SYSTEM)
    (reply,) = dict(LocalModel(path=str(folder)).replies([prompt_of("w7", "w8")])).values()
    assert (reply.text, reply.complete) == greedy(folder, "w1 user w2 w7\n\nw8 w3", 6)


def test_a_template_that_refuses_everything_is_named(templated):
    judge = LocalModel(path=str(templated("{{ raise_exception('never') }}")))
    for contents in (["w8"], ["w7", "w8"]):
        with pytest.raises(SaevalError, match=r"the chat template of \S+ refuses the judge's prompts"):
            list(judge.replies([prompt_of(*contents)]))


def test_the_length_is_that_of_the_tokenizer(folders):
    judge = LocalModel(path=str(folders()))
    assert judge.length(words(9)) == 9
    assert judge.cost([prompt_of("w1 w2", words(5), max_tokens=7)] * 2) == (2, 2 * 14)


def test_the_model_is_loaded_when_asked_and_released_when_closed(folders):
    judge = LocalModel(path=str(folders()))
    judge.check()
    assert "_model" not in vars(judge)
    list(judge.replies([prompt_of("w1")]))
    gone = weakref.ref(vars(judge)["_model"])
    judge.close()
    gc.collect()
    assert gone() is None
    assert len(list(judge.replies([prompt_of("w1")]))) == 1


def test_the_identity_is_that_of_weights_and_tokenizer(folders, tmp_path):
    identity = dict(LocalModel(path=str(folders())).identity())
    assert identity == LocalModel(path=str(folders()), batch_size=3, device="cpu").identity()
    other, copy = tiny_folder(tmp_path / "b", seed=1), tiny_folder(tmp_path / "c")
    assert LocalModel(path=str(other)).identity()["weights"] != identity["weights"]
    assert LocalModel(path=str(folders()), dtype="bfloat16").identity()["dtype"] == "bfloat16"
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    assert LocalModel(path=str(copy)).identity()["tokenizer"] != identity["tokenizer"]
    json.dumps(identity)


def test_what_cannot_answer_is_refused(tmp_path, folders):
    with pytest.raises(SaevalError, match="is a reward model, which cannot answer; choose a language model"):
        LocalModel(path=str(tiny_folder(tmp_path / "reward", "llama", "reward")))
    with pytest.raises(SaevalError, match="'device' of judge 'huggingface': torch cannot use 'tpu7' here"):
        LocalModel(path=str(folders()), device="tpu7").check()
    bare = tiny_folder(tmp_path / "bare")
    for file in some(bare.glob("*token*")):
        file.unlink()
    with pytest.raises(SaevalError, match="has no tokenizer files"):
        LocalModel(path=str(bare)).check()


def test_nothing_is_logged_or_shown(folders, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        list(LocalModel(path=str(folders())).replies([prompt_of(words(40), max_tokens=30)]))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
