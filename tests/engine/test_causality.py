"""The first batch proves that a model is causal: other later tokens move no earlier state, in no row."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from saeval import SaevalError, cli
from saeval.base.errors import SuiteError
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.architectures import VOCABULARY, tiny_folder, tiny_model
from saeval.testing.claims import every, some


class Encoder(TinyModel):
    """Every token sees the mean of all real tokens of its row."""

    def _block(self, index, x, real=None):
        real = torch.ones_like(x[..., :1]) if real is None else real[..., None].to(x)
        whole = ((x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)).expand_as(x)
        return super()._block(index, (x + whole) / 2, real[..., 0])


class Ahead(TinyModel):
    """Every token sees the next one, as where a mask is off by one."""

    def _block(self, index, x, real=None):
        return super()._block(index, x + 0.1 * x.roll(-1, 1), real)


class Prefix(TinyModel):
    """The first four tokens are read both ways, as a prefix-LM reads a prompt; all others from left to right."""

    def _block(self, index, x, real=None):
        x = torch.cat([x[:, :4] + x[:, :4].mean(1, keepdim=True), x[:, 4:]], 1)
        return super()._block(index, x, real)


class Unmasked(TinyModel):
    """A reward model that also reads what stands after a text, as one that is given no attention mask."""

    def _block(self, index, x, real=None):
        return super()._block(index, x + x.mean(1, keepdim=True), real)


@pytest.mark.parametrize("size", [1, 3, 24])
@pytest.mark.parametrize("wrong", [Encoder, Ahead, Prefix])
def test_a_language_model_that_reads_ahead_stops_the_run_before_anything_is_streamed(wrong, size, tmp_path):
    with pytest.raises(SuiteError, match=r"preflight: the model 'tiny' is not causal: other later tokens") as caught:
        evaluate_tiny(["ce", "l0"], model=wrong(), batch_size=size, out=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert "use one that reads from left to right" in str(caught.value)
    assert not [f for f in tmp_path.rglob("*.json") if len(f.stem) == 24]


@pytest.mark.parametrize("size", [1, 10])
def test_a_reward_model_whose_reward_depends_on_padding_stops_the_run(size):
    rows = TinyPairs(pairs=10, length=8)
    with pytest.raises(SuiteError, match=r"preflight: the model 'tiny' is not causal: other padding after a text"):
        evaluate_tiny(["reward_margin"], model=Unmasked(kind="reward"), rows=rows, batch_size=size)


def test_the_run_may_only_warn_and_its_results_say_so(caplog):
    with caplog.at_level(logging.WARNING, "saeval"):
        results = evaluate_tiny(["ce"], model=Ahead(), preflight="warn", batch_size=24)
    assert "preflight: the model 'tiny' is not causal" in caplog.text
    (result,) = results
    assert result.status == "ok"
    (finding,) = result.provenance["preflight"]["model"]
    assert finding["check"] == "causal"
    assert result.provenance["causal"]["max_relative_change"] > 0.01


@pytest.mark.parametrize("size", [1, 2, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["causal", "reward"])
def test_what_the_proof_found_stands_in_the_provenance_of_what_it_matters_to(kind, dtype, size):
    rows = tiny_tokens() if kind == "causal" else TinyPairs(24)
    metrics = ["ce", "l0"] if kind == "causal" else ["reward_margin", "margin_recovered"]
    results = evaluate_tiny(metrics, model=TinyModel(kind=kind, dtype=dtype), rows=rows, batch_size=size)
    assert not results.failed
    told = [r for r in results if r.metric != "l0"]
    for result in some(told):
        proof = result.provenance["causal"]
        assert proof["max_relative_change"] < 1e-5
        assert proof["compared"] > 0
        assert proof["dtype"] == str(dtype).removeprefix("torch.")
    assert "causal" not in next((r.provenance for r in results if r.metric == "l0"), {})


def test_the_proof_takes_one_pass_and_none_where_no_final_state_is_asked_for():
    model, other = TinyModel(), TinyModel()
    with_it = evaluate_tiny(["ce"], model=model, batch_size=24)
    without = evaluate_tiny(["ce"], model=other, batch_size=24, preflight="off")
    assert sum(model.passes.values()) == sum(other.passes.values()) + 2
    assert with_it.forward_passes == without.forward_passes + 2  # the other is the proof of the resume
    assert every("causal" not in r.provenance for r in without)
    model = TinyModel()
    evaluate_tiny(["l0"], model=model, batch_size=24)
    assert sum(model.passes.values()) == 1


BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip


def test_bert_that_is_no_decoder_and_llama_that_is_not_causal_are_refused(tmp_path):
    config = AutoConfig.for_model("bert", **BERT)
    torch.manual_seed(0)
    bert = AutoModelForCausalLM.from_config(config).eval()
    llama = tiny_model("llama")
    for layer in llama.model.layers:
        layer.self_attn.is_causal = False
    llama.config.is_causal = False
    for model in (bert, llama):
        with pytest.raises(SaevalError, match=r"does not read from left to right|is not causal") as caught:
            evaluate_tiny(["ce"], model=model, saes=[TinySAE(d_in=32)], allow=("*",), rows=tiny_tokens(vocab=97))
        assert len(str(caught.value).splitlines()) == 1


def test_a_folder_whose_config_is_not_causal_is_refused(tmp_path, capsys, saelens_folder):
    folder = tiny_folder(tmp_path / "model", "llama", is_causal=False)
    sae = saelens_folder(d_in=32, hook_name="blocks.1.hook_resid_pre")
    (tmp_path / "a.txt").write_text(" ".join(f"w{1 + i % 96}" for i in range(200)))
    (tmp_path / "s.yaml").write_text(
        f"suite: s\nmodel: {{use: huggingface, path: {folder}}}\nsaes: [{{use: saelens, path: {sae}}}]\n"
        f"metrics: [ce]\ndata: {{use: text, path: {tmp_path / 'a.txt'}, context: 8, sequences: 1}}\n"
    )
    capsys.readouterr()
    assert cli.main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--allow", "*"]) == 2
    said = capsys.readouterr().err
    assert "does not read from left to right" in said or "is not causal" in said
    assert "Traceback" not in said


def off_by_one(kind, monkeypatch):
    """A model in which every token attends to the next one too."""
    import transformers.models.gpt2.modeling_gpt2 as gpt2
    import transformers.models.llama.modeling_llama as llama

    def mask(*args, **named):
        x = named.get("inputs_embeds", named.get("input_embeds"))
        n = x.shape[1]
        wrong = torch.zeros(n, n, dtype=x.dtype).masked_fill(~torch.ones(n, n).tril(1).bool(), torch.finfo(x.dtype).min)
        return wrong.expand(x.shape[0], 1, n, n)

    for module in (gpt2, llama):
        monkeypatch.setattr(module, "create_causal_mask", mask)
    return tiny_model(kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_mask_that_is_off_by_one_is_found_in_every_precision(kind, dtype, monkeypatch):
    model = off_by_one(kind, monkeypatch).to(dtype)
    with pytest.raises(SaevalError, match=r"does not read from left to right|is not causal"):
        evaluate_tiny(["l0"], model=model, saes=[TinySAE(d_in=32)], rows=tiny_tokens(vocab=VOCABULARY))


@pytest.mark.parametrize("size", [1, 2, 3, 24])
def test_a_look_at_the_next_token_is_found_in_half_precision_whatever_the_batch(size):
    class FarAhead(TinyModel):
        """Every token sees as much of the next one as of itself."""

        def _block(self, index, x, real=None):
            return super()._block(index, x + x.roll(-1, 1), real)

    model = FarAhead().converted(torch.bfloat16)
    with pytest.raises(SuiteError, match="is not causal"):
        # Rows so long that the states before the changed tokens are few among all.
        evaluate_tiny(["ce"], model=model, batch_size=size, rows=tiny_tokens(rows=40, context=80))


def test_rows_of_one_token_alone_prove_causality_too():
    rows = tiny_tokens(rows=40)
    rows.tokens[:] = 1
    with pytest.raises(SuiteError, match="is not causal"):
        evaluate_tiny(["ce"], model=Ahead(), rows=rows)
