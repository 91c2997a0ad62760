"""sae-lens' own evaluation of the testbed, from its own store of tokens, beside ours of the same rows from a file."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from sae_lens import SAE
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM, AutoTokenizer

import saeval
from compat_runs import arrays, numbers, plugins
from saeval.testing import evaluate
from saeval.testing.claims import some
from saeval_data.stdlib import stdlib_modules
from saeval_testbed import WEIGHTS

ROOT = Path(__file__).parents[2]
CONTEXT, BATCH, BATCHES = 32, 4, 3
STREAMED = ["saelens_downstream"]
RESTED = [{"saelens_variance": {"batch_size": BATCH}}, "saelens_features", "saelens_weights"]


@pytest.fixture(scope="module")
def bridge():
    module = AutoModelForCausalLM.from_pretrained(WEIGHTS / "model", dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "model")
    made = build_bridge_from_module(module, "GPT2LMHeadModel", hf_config=module.config, tokenizer=tokenizer)
    return made.eval()


@pytest.fixture(scope="module")
def texts():
    """Short ones, so that rows hold several of them, with separators between."""
    return [{"text": text[:80]} for _, text in stdlib_modules("held_out", tests=False)][:60]


class Recorded(ActivationsStore):
    """Remembers the batches it gave."""

    def get_batch_tokens(self, *args, **kwargs):
        found = super().get_batch_tokens(*args, **kwargs)
        self.given = [*getattr(self, "given", []), found]
        return found


def ours(tokens, path, name, metrics, exclude):
    np.save(path, tokens.numpy())
    results = evaluate(
        model={"use": "testbed"}, saes=[f"testbed/{name}"], data={"use": "rows", "path": str(path), "exclude": exclude},
        metrics=metrics, plugins=plugins(), batch_size=5,
    )  # fmt: skip
    assert not results.failed, results.failed[0].traceback
    return results


@pytest.mark.parametrize("special", [True, False], ids=["special-tokens-excluded", "nothing-excluded"])
@pytest.mark.parametrize("name", ["relu-3", "topk-16", "gated", "jumprelu"])
def test_every_field_of_sae_lens_on_the_testbed(bridge, texts, tmp_path, name, special):
    sae = SAE.load_from_disk(WEIGHTS / "saes" / name)
    store = Recorded.from_sae(
        bridge, sae, dataset=Dataset.from_list(texts), context_size=CONTEXT, store_batch_size_prompts=BATCH,
        streaming=False, total_tokens=1,
    )  # fmt: skip
    theirs, features = run_evals(
        sae, store, bridge, ActivationScaler(), get_eval_everything_config(BATCH, BATCHES, BATCHES),
        exclude_special_tokens=special,
    )  # fmt: skip
    batches = store.given[-2 * BATCHES :]  # what came before was a look at the data
    first, second = torch.cat(batches[:BATCHES]), torch.cat(batches[BATCHES:])
    bos = bridge.tokenizer.bos_token_id
    assert (first[:, 0] == bos).all()
    assert (first[:, 1:] == bos).any(), "no row holds two texts"
    assert not torch.equal(first, second), "its two passes saw the same tokens"

    exclude = [bos] if special else []
    results = [
        *ours(first, tmp_path / "first.npy", name, STREAMED, exclude),
        *ours(second, tmp_path / "second.npy", name, RESTED, exclude),
    ]
    found = numbers(results)
    expected = {k: v for section, part in theirs.items() if section != "token_stats" for k, v in part.items()}
    assert set(expected) == set(found)
    for field, value in some(expected.items()):
        assert found[field] == pytest.approx(value, rel=1e-4), field
    lists = arrays(results)
    assert set(lists) == set(features)
    if sae.cfg.to_dict().get("rescale_acts_by_decoder_norm"):  # here the decoder's norms are in the encoder already
        norms = sae.W_dec.norm(dim=1).detach().numpy()
        features |= {field: np.array(features[field]) * norms for field in ("encoder_norm", "encoder_bias")}
    for field, value in some(features.items()):
        assert lists[field] == pytest.approx(np.array(value), rel=1e-4, abs=1e-6, nan_ok=True), field


def documented(part):
    """Of each named value in one of the page's tables: by column, the number and half its last digit."""
    header, _, *rows = [line for line in part.splitlines() if line.startswith("|")]
    subjects = [cell.strip() for cell in header.strip("|").split("|")][2:]
    found = {}
    for row in rows:
        _, name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        numbers = [cell.strip("*").replace("−", "-") for cell in cells]
        digits = [0.51 * 10.0 ** -len(number.partition(".")[2]) for number in numbers]
        columns = zip(subjects, numbers, digits, strict=True)
        found[name.strip("`")] = {s: (float(number), digit) for s, number, digit in columns if number != "–"}
    return found


def alias(entry):
    """The name of a metric's values in a suite."""
    if isinstance(entry, str):
        return entry
    ((name, parameters),) = entry.items()
    return parameters.get("as", name)


@pytest.mark.slow
@pytest.mark.parametrize(("exclude", "table"), [([], 0), (["bos"], 1)], ids=["nothing-excluded", "bos-excluded"])
def test_the_tables_of_the_docs(tmp_path, exclude, table):
    parts = re.split(r"(?=\| value \| name \|)", (ROOT / "docs" / "compat.md").read_text())
    claims = documented(parts[1 + table].partition("\n\n")[0])
    same_text = f"(Python {platform.python_version()})" in parts[0]  # another has a little other text
    suite = yaml.safe_load((ROOT / "suites" / "compat.yaml").read_text())
    suite["data"]["exclude"] = exclude
    claimed = {name.partition(".")[0] for name in claims}
    suite["metrics"] = [entry for entry in suite["metrics"] if alias(entry) in claimed]
    results = saeval.run(suite, out=tmp_path, plugins=plugins())
    assert not results.failed, results.failed[0].traceback
    assert len(claims) >= 13
    for name, claim in some(claims.items()):
        for subject, (number, digit) in some(claim.items()):
            value = results.value(name, subject if subject == "mean" else f"testbed/{subject}")["value"]
            tolerance = digit if same_text else max(0.05 * abs(number), 0.02)
            assert value == pytest.approx(number, rel=0, abs=tolerance), (name, subject)
