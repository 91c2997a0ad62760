"""Devices, dtypes and operating systems: every usual spelling, and nothing that only one system has."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import saeval
from saeval import cli
from saeval.base import memory, run_options
from saeval.base.errors import SaevalError, SuiteError
from saeval.base.run_options import RunOptions
from saeval.results.pages import write_pages
from saeval.results.report import Report
from saeval.suite import schema
from saeval.suite.yaml_marks import Marks
from saeval.testing.architectures import tiny_folder, tiny_model
from saeval.testing.tiny import TinySAE

SUITE = """\
suite: spellings
model: {{use: huggingface, path: {folder}, dtype: {dtype}}}
data: {{use: python-stdlib, context: 16, sequences: 4}}
saes: [testbed/topk-8]
metrics: [{metric}]
"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("gpt2"), n_positions=16)


@pytest.fixture
def evaluated(tmp_path):
    """Evaluates an SAE on four rows of tokens; returns the first result."""
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(1, 97, (4, 9)))

    def run(model, **given):
        results = saeval.evaluate(
            model=model, data={"use": "tokens", "path": str(tmp_path / "tokens.npy"), "context": 8, "bos": False},
            saes=[(TinySAE(d_in=32), "blocks.1.hook_resid_pre")], metrics=["ce"], allow=["*"], key="these", **given,
        )  # fmt: skip
        (result,) = results
        assert result.status == "ok", result.reason
        return result

    return run


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("bf16", "bfloat16"), ("torch.bfloat16", "bfloat16"), (torch.bfloat16, "bfloat16"), ("BFloat16", "bfloat16"),
        ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"), ("float", "float32"), (torch.float32, "float32"),
        ("double", "float64"), ("float64", "float64"),
    ],
)  # fmt: skip
def test_a_dtype_in_its_usual_spellings(given, name):
    assert (RunOptions(dtype=given).dtype, RunOptions(sae_dtype=given).sae_dtype) == (name, name)


@pytest.mark.parametrize("given", ["int8", "bf15", "", torch.int32])
def test_what_is_no_dtype(given):
    for option in ("dtype", "sae_dtype"):
        with pytest.raises(SaevalError, match=r"expected one of float32, float64, bfloat16, float16$"):
            RunOptions(**{option: given})


def test_a_device_in_its_usual_spellings():
    for given in ("cpu", "cpu:0", "CPU", torch.device("cpu"), torch.device("cpu:0")):
        assert (RunOptions(device=given).device, RunOptions(sae_device=given).sae_device) == ("cpu", "cpu")


def test_auto_is_the_best_device_that_can_sum(monkeypatch):
    faults = {"cuda": "none here", "mps": "it has no float64, in which saeval sums", "cpu": None}
    monkeypatch.setattr(run_options, "_fault", faults.get)
    assert RunOptions(device="auto").device == "cpu"
    faults["mps"] = None
    assert RunOptions(device="auto").device == "mps"
    faults["cuda"] = None
    assert (RunOptions(device="auto").device, RunOptions(sae_device="auto").sae_device) == ("cuda", "cuda")


def test_a_device_without_float64_is_refused(monkeypatch):
    plain = torch.zeros

    def zeros(*size, device=None, dtype=None):
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return plain(*size)

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(SaevalError, match=r"^device 'mps': it has no float64, in which saeval sums; choose another"):
        RunOptions(device="mps")


def test_spellings_through_every_door(gpt2, evaluated, tmp_path, capsys):
    folder = {"use": "huggingface", "path": str(gpt2)}
    expected = None
    for model, given in (
        ({**folder, "dtype": "bfloat16"}, {}),
        ({**folder, "dtype": "bf16"}, {"device": "cpu:0"}),
        (folder, {"dtype": "torch.bfloat16", "device": "auto", "sae_device": "cpu"}),
        (folder, {"dtype": torch.bfloat16, "sae_dtype": "fp32"}),
    ):
        if given.get("device") == "auto" and torch.cuda.is_available():
            given["device"] = "cpu"
        result = evaluated(model, out=tmp_path / "one", **given)
        assert result.provenance["dtypes"] == {"model": "bfloat16", "saes": "float32", "sums": "float64"}
        assert result.provenance["device"] == "cpu"
        expected = expected or result.key
        assert result.key == expected
    file = tmp_path / "s.yaml"
    file.write_text(SUITE.format(folder=gpt2, dtype="bf17", metric="l0"))
    assert cli.main(["check", str(file)]) == 2
    said = capsys.readouterr().err
    assert "'dtype' of the model 'huggingface': input should be 'float32', 'float64', 'bfloat16' or 'float16'" in said
    assert "got 'bf17'" in said


def test_a_live_model_on_auto_stays_where_it_is(evaluated):
    for device in ("auto", "cpu:0"):
        assert evaluated(tiny_model("gpt2"), device=device).provenance["device"] == "cpu"


@pytest.mark.parametrize(
    ("system", "maximum", "mib"), [("linux", 3 * 2**20, 3 * 2**10), ("darwin", 3 * 2**30, 3 * 2**10)]
)
def test_peak_memory_is_in_the_systems_own_units(monkeypatch, system, maximum, mib):
    fake = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=maximum))
    monkeypatch.setattr(memory, "resource", fake)
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform=system))
    assert memory.peak_mib() == mib


def test_peak_memory_where_there_is_no_resource(monkeypatch):
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=5 * 2**20))
    monkeypatch.setattr(memory, "resource", None)
    monkeypatch.setattr(memory.psutil, "Process", lambda: process)
    assert memory.peak_mib() == 5


def test_peak_memory_here():
    assert 50 < memory.peak_mib() < 10**6


def test_saeval_is_imported_without_what_windows_lacks():
    """Of torch and its friends, each guards its own imports by platform; so these are away from saeval's on."""
    script = (
        "import sys, torch, transformers, scipy.stats, numba, datasets, pandas, psutil\n"
        "for name in ('resource', 'fcntl', 'pwd', 'grp', 'termios'):\n"
        "    sys.modules[name] = None\n"
        "import os\n"
        "for name in ('sysconf', 'getuid', 'fork', 'uname'):\n"
        "    delattr(os, name)\n"
        "from saeval.base import memory\n"
        "import saeval.api, saeval.cli, saeval.cli.verbs\n"
        "from saeval.registry.discovery import Plugins\n"
        "assert not Plugins().failures, Plugins().failures\n"
        "assert memory.resource is None\n"
        "assert memory.memory_budget('cpu') > memory.available('cpu') // 2 > 0\n"
        "print('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr


def test_a_console_that_lacks_a_sign_has_it_in_ascii(monkeypatch):
    """Windows' consoles and `LANG=C` have no '−' and no '±'."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert cli.main(["show", "ce"]) == 0
    console.flush()
    assert b"delta_ce = ce_sae - ce_clean" in console.buffer.getvalue()


def test_pages_are_files_whatever_a_metric_is_called(tmp_path):
    report = Report("r", pages=lambda results: {"a/b: <c>?.md": "text"})
    written, failed = write_pages([report], [], tmp_path / "pages")
    assert ([file.name for file in written], failed) == (["a-b- -c--.md"], [])
    assert written[0].read_text() == "text"


@pytest.mark.parametrize(
    "name", ["a:b", "a/b", "a\\b", "nul", "COM1.x", ".hidden", "ends.", "a\nb", "a\x1b[2J", "a" * 300]
)
def test_a_suites_name_is_a_folder_on_every_system(name):
    body = {"suite": name, "data": "x", "saes": ["s"], "metrics": ["l0"]}
    with pytest.raises(SuiteError, match=r"a suite's name becomes a folder, but it (has|is|begins)"):
        schema.validate(body, Marks("suite"))
