"""Every value of every config beside an SAE, changed into what it may not be: refused by name, or of no account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from damage import DEFAULTED, MEASURED, ODD, REGISTRY, answer
from examples import EXAMPLES, Example
from llama_scope_files import write
from saeval import SaevalError, cli
from saeval.testing.architectures import tiny_folder
from saeval.testing.claims import some
from saeval_formats.fields import Fields

CONFIGURED = (
    "saelens-topk-rescaled", "saelens-jumprelu_skip_transcoder",
    "dictionary_learning-MatryoshkaBatchTopKSAE", "sparsify-groupmax", "sparsify-topk_skip_transcoder",
    "gemma_scope-2: jumprelu", "gemma_scope-2: jumprelu_skip_transcoder", "llama_scope-jumprelu", "apollo-of a run",
    "circuit_tracer-transcoder", "llamascopium-topk",
)  # fmt: skip
BY_LABEL = {e.label: e for e in EXAMPLES}


def leaves(config: dict[str, Any], at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The place of every value, objects themselves included."""
    found = []
    for key, value in config.items():
        found.append((*at, key))
        if isinstance(value, dict):
            found += leaves(value, (*at, key))
    return found


def value_of(config: dict[str, Any], at: tuple[str, ...]) -> Any:
    for key in at:
        config = config[key]
    return config


def changed(config: dict[str, Any], at: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *rest = at
    return {**config, key: changed(config[key], tuple(rest), value) if rest else value}


def identity(example: Example, reference: Any) -> tuple[Any, ...]:
    info = REGISTRY.loaders[example.format]().info(reference)
    return info.sha256, info.d_in, info.d_sae, info.d_out, info.architecture


def same(one: Any, other: Any) -> bool:
    return all((a - b).abs().max() <= 1e-5 if a.shape == b.shape else False for a, b in zip(one, other, strict=True))


def means_something(key: str, before: Any, value: Any) -> bool:
    """Whether a value makes an SAE of its own at this key, or stands for the library's default."""
    if isinstance(value, bool):
        return isinstance(before, bool) or key == "normalize_activations"
    number = isinstance(value, int | float) and value > 0
    return (key in MEASURED and number) or (key in DEFAULTED and value in (None, {}))


@pytest.mark.parametrize("label", CONFIGURED)
def test_no_value_of_a_config_is_misread(label, tmp_path):
    example: Example = BY_LABEL[label]
    reference = example.write(tmp_path)
    right, known = answer(example, reference), identity(example, reference)
    files = sorted(p for p in tmp_path.rglob("*") if p.suffix in (".json", ".yaml"))
    assert files
    refused = 0
    for file in some(files):
        text = file.read_text()
        config = yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
        for at in some(leaves(config)):
            unread = False
            for value in ODD:
                before, now = value_of(config, at), changed(config, at, value)
                file.write_text(yaml.safe_dump(now) if file.suffix == ".yaml" else json.dumps(now))
                try:
                    now_known = identity(example, reference)
                    if unread and now_known == known:
                        continue  # what is not read here was loaded for the first such value
                    found = answer(example, reference)
                except SaevalError as error:
                    sentence = str(error)
                    refused += 1
                    assert "\n" not in sentence
                    assert len(sentence) < 700
                    assert str(tmp_path) in sentence
                    # Sizes that do not fit are told by the tensors; an object's own key, by what it should hold.
                    named = [key for key in at if key in sentence] or "; check " in sentence
                    assert named or type(before) is type(value), (at, value, sentence)
                else:
                    unread |= now_known == known
                    assert same(found, right) or means_something(at[-1], before, value), (at, value)
        file.write_text(text)
    assert refused > 20


@pytest.mark.parametrize(
    "value", [0, 0.0, -1, -0.5, 1e-300, 1e300, 10**400, True, False, "1", None, [1], {}, float("nan"), float("inf")]
)
@pytest.mark.parametrize("read", ["whole", "positive"])
def test_a_number_is_a_number(read, value):
    said = Fields(Path("cfg.json"), {"n": value}, "trainer")
    with pytest.raises(
        SaevalError, match=r"^cfg.json: expected a positive (whole )?number in 'trainer.n'.*, found "
    ) as raised:
        getattr(said, read)("n")
    assert len(str(raised.value)) < 200


def test_a_threshold_that_was_never_set_stops_a_run(tmp_path, capsys):
    write(tmp_path / "sae", jump_relu_threshold=0)
    tiny_folder(tmp_path / "model", "gpt2", "causal")
    (tmp_path / "corpus.txt").write_text(" ".join(f"w{1 + i % 90}" for i in range(200)))
    (tmp_path / "suite.yaml").write_text(
        "suite: threshold\n"
        f"model: {{use: huggingface, path: {tmp_path / 'model'}}}\n"
        f"data: {{use: text, path: {tmp_path / 'corpus.txt'}, context: 12, sequences: 4}}\n"
        f"saes: [{{use: llama_scope, path: {tmp_path / 'sae'}, hook_name: blocks.1.hook_resid_post}}]\n"
        "metrics: [l0]\n"
    )
    assert cli.main(["run", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "hyperparams.json: 'jump_relu_threshold' is 0, the library's default: it was never calibrated" in told
    assert not (tmp_path / "out").exists()
