"""Files as editors and wrapped modules leave them: byte order marks, other encodings, prefixed tensor names."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
import sae_lens
import torch

import saeval
from damage import answer, tensors_of, write_tensors
from examples import EXAMPLES, Example
from saeval import SaevalError, cli
from saeval.suite.schema import load
from saeval.testing.architectures import tiny_folder
from saeval.testing.claims import some
from saeval_data.text import Text
from saeval_formats.saelens import SAELens

BY_LABEL = {e.label: e for e in EXAMPLES}
CONFIGURED = (
    "saelens-standard",
    "dictionary_learning-AutoEncoder",
    "sparsify-topk",
    "gemma_scope-2: jumprelu",
    "llama_scope-jumprelu",
    "apollo-of a run",
)
ONE_EACH = (*CONFIGURED, "gemma_scope-jumprelu", "openai-TopK", "apollo-published", "dictionary_learning-BatchTopKSAE")
WIDE = {
    "UTF-16": codecs.BOM_UTF16_LE + "{}".encode("utf-16-le"),
    "UTF-16 without a mark": "{}".encode("utf-16-be"),
    "UTF-32": "{}".encode("utf-32"),
}


def text_files(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".yaml"))
    assert found
    return found


def same(found, right) -> bool:
    return torch.equal(found[0], right[0]) and torch.equal(found[1], right[1])


@pytest.mark.parametrize("label", CONFIGURED)
def test_a_config_with_a_byte_order_mark(label, tmp_path):
    example: Example = BY_LABEL[label]
    reference = example.write(tmp_path)
    right = answer(example, reference)
    for file in text_files(tmp_path):
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert same(answer(example, reference), right)


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("label", CONFIGURED)
def test_a_config_in_another_encoding_is_one_sentence(label, encoding, tmp_path):
    example: Example = BY_LABEL[label]
    reference = example.write(tmp_path)
    for file in some(text_files(tmp_path)):
        file.write_bytes(WIDE[encoding])
        with pytest.raises(
            SaevalError, match=rf"^{file}: {encoding.split()[0]} text, expected UTF-8; save it again as UTF-8$"
        ):
            answer(example, reference)


def prefixed(path: Path, prefix: str) -> None:
    tensors = tensors_of(path)
    write_tensors(path, {prefix + k if isinstance(v, torch.Tensor) else k: v for k, v in tensors.items()})


def weights(folder: Path) -> Path:
    (found,) = (p for p in folder.rglob("*") if p.suffix in (".pt", ".safetensors", ".npz"))
    return found


@pytest.mark.parametrize("prefix", ["ae.", "model.sae.", "module.ae."])
@pytest.mark.parametrize(
    "label", [label for label in ONE_EACH if not label.startswith("apollo")]
)  # whose prefixes are hooks
def test_the_prefix_of_a_module_that_held_the_sae_is_named(label, prefix, tmp_path):
    example: Example = BY_LABEL[label]
    reference = example.write(tmp_path)
    path = weights(tmp_path)
    prefixed(path, prefix)
    sentence = rf"^{path}: every tensor's name begins with '{prefix.removeprefix('module.')}', the name of a module around the SAE"
    with pytest.raises(SaevalError, match=sentence):
        answer(example, reference)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module.module."])
@pytest.mark.parametrize("label", ONE_EACH)
def test_names_of_a_wrapped_module(label, prefix, tmp_path):
    example: Example = BY_LABEL[label]
    reference = example.write(tmp_path)
    right = answer(example, reference)
    prefixed(weights(tmp_path), prefix)
    assert same(answer(example, reference), right)


@pytest.mark.parametrize("label", ONE_EACH)
def test_names_of_which_only_some_are_prefixed(label, tmp_path):
    example: Example = BY_LABEL[label]
    reference = example.write(tmp_path)
    path = weights(tmp_path)
    tensors = tensors_of(path)
    name = next(k for k, v in tensors.items() if isinstance(v, torch.Tensor))
    tensors[f"_orig_mod.{name}"] = tensors.pop(name)
    write_tensors(path, tensors)
    with pytest.raises(
        SaevalError, match=rf"^{path}: '_orig_mod.{name}' has the prefix '_orig_mod.' .*; save the state_dict"
    ):
        answer(example, reference)


def test_a_library_architecture_with_a_mark_and_prefixes(tmp_path):
    """SAELens itself reads neither."""
    config = sae_lens.MatchingPursuitSAEConfig(d_in=12, d_sae=40, max_iterations=4)
    theirs = sae_lens.MatchingPursuitSAE(config)
    theirs.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    with torch.no_grad():
        theirs.W_dec.copy_(torch.randn(40, 12, generator=torch.Generator().manual_seed(0)))
        theirs.W_dec /= theirs.W_dec.norm(dim=-1, keepdim=True)
    theirs.save_model(tmp_path)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    prefixed(weights(tmp_path), "module.")
    (tmp_path / "cfg.json").write_bytes(codecs.BOM_UTF8 + (tmp_path / "cfg.json").read_bytes())
    with torch.no_grad():
        torch.testing.assert_close(
            SAELens().load({"path": str(tmp_path)}).encode(x).feature_acts, theirs.encode(x).to_dense()
        )
    edit = json.loads((tmp_path / "cfg.json").read_text("utf-8-sig"))
    for key, value in [
        ("max_iterations", -1),
        ("max_iterations", True),
        ("residual_threshold", "x"),
        ("residual_threshold", float("nan")),
    ]:
        (tmp_path / "cfg.json").write_text(json.dumps({**edit, key: value}))
        with pytest.raises(SaevalError, match=f"cfg.json: expected a .* in '{key}'"):
            SAELens().info({"path": str(tmp_path)})


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_texts_with_a_byte_order_mark(kind, tmp_path):
    """The mark is no part of the first document."""
    content = {"txt": "w1 w2 w3\nw4", "jsonl": '{"text": "w1 w2 w3"}\n{"text": "w4"}\n'}[kind].encode()
    path = tmp_path / f"corpus.{kind}"
    path.write_bytes(content)
    plain = [d.text for d in Text(path=str(path)).documents("evaluation")]
    path.write_bytes(codecs.BOM_UTF8 + content)
    assert [d.text for d in Text(path=str(path)).documents("evaluation")] == plain
    assert plain[0].startswith("w1")
    path.write_bytes(codecs.BOM_UTF8 + b"\n" + content)
    assert [d.text.strip() for d in Text(path=str(path)).documents("evaluation")] == [text.strip() for text in plain]
    path.write_bytes(content.decode().encode("utf-16"))
    with pytest.raises(SaevalError, match=rf"^{path}: UTF-16 text, expected UTF-8; save it again as UTF-8$"):
        list(Text(path=str(path)).documents("evaluation"))


SUITE = "suite: marked\nmodel: {use: testbed}\ndata: {use: python-stdlib, context: 32, sequences: 4}\nsaes: [testbed/relu-5]\nmetrics: [l0]\n"


def test_a_suite_with_a_byte_order_mark(tmp_path, capsys):
    path = tmp_path / "marked.yaml"
    path.write_bytes(codecs.BOM_UTF8 + SUITE.replace("suite:", "site:").encode())
    assert cli.main(["check", str(path)]) == 2
    assert f"{path}:1:1: " in capsys.readouterr().err  # the mark takes up no column
    path.write_bytes(codecs.BOM_UTF8 + SUITE.encode())
    assert load(path).body.suite == "marked"
    path.write_bytes(SUITE.encode("utf-16"))
    assert cli.main(["check", str(path)]) == 2
    assert capsys.readouterr().err == f"{path}: UTF-16 text, expected UTF-8; save it again as UTF-8\n"
    path.write_bytes(SUITE.replace("marked", "m\xe4rked").encode("latin-1"))
    assert cli.main(["check", str(path)]) == 2
    assert capsys.readouterr().err == f"{path}: not UTF-8 text (at byte 8); save it again as UTF-8\n"


def test_results_with_a_byte_order_mark(tmp_path, capsys):
    """An editor puts one there; the results are still read."""
    (tmp_path / "marked.yaml").write_text(SUITE)
    out = tmp_path / "out"
    assert cli.main(["run", str(tmp_path / "marked.yaml"), "--out", str(out)]) == 0
    files = sorted((out / "marked").glob("*.json"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    capsys.readouterr()
    assert cli.main(["show", str(out / "marked")]) == 0
    assert " l0 " in capsys.readouterr().out


def test_a_models_config_with_a_mark_says_who_cannot_read_it(tmp_path):
    """transformers reads the file too, and refuses the mark."""
    tiny_folder(tmp_path / "model", "gpt2", "causal")
    (tmp_path / "corpus.txt").write_text("w1 w2 w3 w4 w5 w6 w7 w8 " * 20)
    data = {"use": "text", "path": str(tmp_path / "corpus.txt"), "context": 8, "sequences": 4}
    config = tmp_path / "model" / "config.json"
    config.write_bytes(codecs.BOM_UTF8 + config.read_bytes())
    model = {"use": "huggingface", "path": str(tmp_path / "model")}
    with pytest.raises(
        SaevalError, match=r"config.json starts with a byte order mark, which transformers cannot read; save"
    ):
        saeval.evaluate(model=model, data=data, saes=[], metrics=["ce"])
