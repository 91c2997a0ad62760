"""A token id that the model does not embed is one sentence, before anything is streamed."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from saeval import SaevalError, cli
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.architectures import VOCABULARY, tiny_folder, tiny_model, tiny_tokenizer
from saeval.text.tokens import TokenDataset


def with_id(token, row=5, position=3):
    rows = tiny_tokens()
    tokens = np.array(rows.tokens)
    tokens[row, position] = token
    return TokenDataset(tokens, rows.documents, rows.clusters, rows.excluded)


@pytest.mark.parametrize("token", [50, 4000, -1])
@pytest.mark.parametrize("position", [3, 12])
def test_an_id_outside_the_vocabulary_is_named_before_a_pass(token, position):
    model = TinyModel()
    with pytest.raises(SaevalError) as caught:
        evaluate_tiny(["l0"], model=model, rows=with_id(token, position=position))
    expected = f"token id {token} in row 5 of the evaluation rows is outside the 50 tokens of 'tiny'"
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert sum(model.passes.values()) == 0


def test_the_last_id_is_fine_and_a_limit_leaves_out_what_it_leaves_out():
    assert not evaluate_tiny(["l0"], rows=with_id(49)).failed
    assert not evaluate_tiny(["l0"], rows=with_id(50), limit=5).failed
    with pytest.raises(SaevalError, match="token id 50 in row 5"):
        evaluate_tiny(["l0"], rows=with_id(50), limit=6)


def test_pairs_are_looked_at_too():
    with pytest.raises(SaevalError, match=r"token id .* in row .* is outside the 50 tokens"):
        evaluate_tiny(["margin_recovered"], model=TinyModel(kind="reward"), rows=TinyPairs(vocab=80))


def test_check_says_so_of_a_folder_and_of_a_live_model(tmp_path, capsys, saelens_folder):
    folder = tiny_folder(tmp_path / "model")
    sae = saelens_folder(d_in=32, hook_name="blocks.1.hook_resid_pre")
    capsys.readouterr()
    rows = [{"tokens": [1, 2, 3, 4, 5, 6, 7, 8, VOCABULARY + 3]}] * 3
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    suite = tmp_path / "s.yaml"
    suite.write_text(
        f"suite: s\nmodel: {{use: huggingface, path: {folder}}}\nsaes: [{{use: saelens, path: {sae}}}]\nmetrics: [l0]\n"
        f"data: {{use: tokens, path: {tmp_path / 'rows.jsonl'}, context: 8, bos: false, sequences: 2}}\n"
    )
    assert cli.main(["check", str(suite)]) == 2
    said = capsys.readouterr().err
    assert f"token id {VOCABULARY + 3} in row 0 of the evaluation rows is outside the {VOCABULARY} tokens" in said
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(SaevalError, match=f"outside the {VOCABULARY} tokens of 'model'"):
        evaluate_tiny(["l0"], model=tiny_model(), rows=with_id(VOCABULARY), saes=[TinySAE(d_in=32)])


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_warned_of(tmp_path, caplog, capsys, saelens_folder):
    folder = tiny_folder(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)
    text = tmp_path / "a.txt"
    suite = {
        "suite": "s", "model": {"use": "huggingface", "path": str(folder)}, "metrics": ["l0"],
        "saes": [{"use": "saelens", "path": str(saelens_folder(d_in=32, hook_name="blocks.1.hook_resid_pre"))}],
        "data": {"use": "text", "path": str(text), "context": 8, "sequences": 1},
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(json.dumps(suite))
    text.write_text("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12")
    with caplog.at_level(logging.WARNING, "saeval"):
        assert cli.main(["check", str(tmp_path / "s.yaml")]) == 0
    assert f"has {VOCABULARY + 1} tokens, the model embeds {VOCABULARY}" in caplog.text
    text.write_text("w1 more " * 12)
    assert cli.main(["check", str(tmp_path / "s.yaml")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"token id {VOCABULARY} in row 0" in said
    assert said.endswith("is its tokenizer another model's?")


def test_a_model_that_does_not_say_its_vocabulary_is_not_checked():
    class Silent(TinyModel):
        vocabulary = None

    assert {r.status for r in evaluate_tiny(["l0"], model=Silent(), rows=with_id(50))} == {"failed"}
    assert torch.tensor(Silent().embed.shape).tolist() == [50, 16]
