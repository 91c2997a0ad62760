"""Every call into a plugin: whatever it does, one sentence names it, and it costs its own cell or entry."""

from __future__ import annotations

import json

import pytest

from saeval import Curve, Mean, Metric, Notes, SaevalError, Scalar, Table, at_hooks, cli, hookimpl
from saeval.interfaces.data import Source
from saeval.interfaces.model import ModelAdapter, ModelSpec
from saeval.interfaces.sae import SAELoader
from saeval.interfaces.substitute import Control
from saeval.results.report import Report
from saeval.stats.evidence import Ratio
from saeval.testing import (
    InMemory,
    TinyModel,
    TinySAE,
    evaluate,
    evaluate_tiny,
    register_rows,
    tiny_plugins,
    tiny_tokens,
)


class Planted(Metric):
    version = 1

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1), mask)

    def conclude(self, total):
        return Scalar(total.value)


class Unprintable:
    """An object that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("planted")


# ---- quantities at other hooks


def raising(hook_name, hooks):
    raise RuntimeError("planted")


def of_text(hook_name, hooks):
    return "blocks.2.hook_resid_pre"


def unknown(hook_name, hooks):
    return ["blocks.22.hook_resid_pre"]


def nothing(hook_name, hooks):
    return None


def exiting(hook_name, hooks):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (raising, "RuntimeError: planted"),
        (of_text, "TypeError: it returned the text 'blocks.2.hook_resid_pre'; return a list of hook names"),
        (unknown, "chooses the hook 'blocks.22.hook_resid_pre', which the model does not have; did you mean"),
        (nothing, "TypeError: 'NoneType' object is not iterable"),
        (exiting, "SystemExit: 3"),
    ],
)
def test_a_chooser_of_hooks_that_raises_is_a_sentence_that_names_its_plugin(choose, said):
    @at_hooks(choose)
    def elsewhere(activations):
        return activations

    class Elsewhere(Planted):
        name = "elsewhere_norm"

        def observe(self, elsewhere, mask):
            return Mean.of(mask.double())

    model = TinyModel()
    with pytest.raises(SaevalError, match=r"metric 'elsewhere_norm'.*'elsewhere' .*plugin tests:tests") as caught:
        evaluate_tiny(["elsewhere_norm", "l0"], Elsewhere, quantities=[elsewhere], model=model)
    assert said in str(caught.value)
    assert sum(model.passes.values()) == 0


# ---- metrics


class RaisingInterventions(Planted):
    name = "raising_interventions"

    @property
    def interventions(self):
        raise RuntimeError("planted")

    def observe(self, substitute_scores, mask):
        return Mean.of(mask.double())


class WrongInterventions(Planted):
    name = "wrong_interventions"
    interventions = {"half": 0.5}  # noqa: RUF012

    def observe(self, substitute_scores, mask):
        return Mean.of(mask.double())


@pytest.mark.parametrize("metric", [RaisingInterventions, WrongInterventions])
def test_a_metric_whose_requests_cannot_be_read_is_a_sentence(metric):
    with pytest.raises(SaevalError, match=rf"metric '{metric.name}': its requests \(plugin tests:tests\) failed: "):
        evaluate_tiny([metric.name], metric)


class RaisingHeadline(Planted):
    name = "raising_headline"

    @property
    def headline(self):
        raise RuntimeError("planted")


class WrongHeadline(Planted):
    name = "wrong_headline"
    headline = 3


class WrongDirection(Planted):
    name = "wrong_direction"

    def conclude(self, total):
        return Scalar(total.value, better="up")


class UnprintableUnit(Planted):
    name = "unprintable_unit"

    def conclude(self, total):
        return Scalar(total.value, unit=Unprintable())


class UnprintableCell(Planted):
    name = "unprintable_cell"

    def conclude(self, total):
        return Table(["x"], [[Unprintable()]])


class ShortCurve(Planted):
    name = "short_curve"

    def conclude(self, total):
        return Curve([1, 2], [total.value])


class ShortRow(Planted):
    name = "short_row"

    def conclude(self, total):
        return Table(["a", "b"], [[1]])


class OneNote(Planted):
    name = "one_note"

    def conclude(self, total):
        return {"mean": Scalar(total.value), "notes": Notes("a sentence")}


class WordlessError(Exception):
    def __str__(self):
        raise RuntimeError("planted")


class RaisesWordless(Planted):
    name = "raises_wordless"

    def conclude(self, total):
        raise WordlessError


class Growing(Ratio):
    """Evidence whose sum is none."""

    def __add__(self, other):
        return [self, other]


class WrongSum(Planted):
    name = "wrong_sum"

    def observe(self, feature_acts, mask):
        return Growing.of(feature_acts.sum(-1), mask.double(), mask)


class WrongComponents(Planted):
    name = "wrong_components"

    def observe(self, feature_acts, mask):
        return Shown.of(feature_acts.sum(-1), mask.double(), mask)


class Shown(Ratio):
    def components(self):
        return {"x": Unprintable()}


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (RaisingHeadline, "RuntimeError: planted"),
        (WrongHeadline, "not iterable"),
        (WrongDirection, "'better' is 'up'; it must be 'lower', 'higher' or None"),
        (UnprintableUnit, "RuntimeError: planted"),
        (UnprintableCell, "RuntimeError: planted"),
        (ShortCurve, "a Curve has 2 x and 1 y"),
        (ShortRow, "row 0 of a Table has 1 cells for 2 columns"),
        (OneNote, "Notes are a list of sentences"),
        (RaisesWordless, "WordlessError"),
        (WrongSum, "the sum of two Evidence objects is list"),
        (WrongComponents, "RuntimeError: planted"),
    ],
)
def test_what_a_metric_says_wrongly_costs_its_own_cell(metric, said, tmp_path):
    results = evaluate_tiny([metric.name, "l0"], metric, out=tmp_path, batch_size=7, checkpoint_seconds=0.0)
    assert [r.status for r in results] == ["failed", "ok"]
    assert said in results[0].reason
    assert metric.name in results.leaderboard()


# ---- controls, loaders, adapters, data


def control(**members):
    return type("Odd", (Control,), {"name": "odd", "build": lambda self: None, **members})


def raises(*_, **__):
    raise RuntimeError("planted")


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (control(copies=property(raises)), r"control 'odd' \(plugin tests:tests\) failed: RuntimeError: planted"),
        (control(copies="3"), r"control 'odd' \(plugin tests:tests\): 'copies' is '3'; it must be a whole number"),
        (control(copies=-1), r"'copies' is -1; it must be a whole number"),
        (
            control(build=3),
            r"unknown control 'odd'.*tests:tests failed: control Odd: TypeError: it has no method 'build'",
        ),
        (control(per="model"), r"'per' is 'model'; it must be 'hook' or 'sae'"),
    ],
)
def test_a_control_that_cannot_be_asked_is_a_sentence(cls, said):
    with pytest.raises(SaevalError, match=said):
        evaluate_tiny(["l0"], control_classes=[cls], controls=["odd"])


class Loader(SAELoader):
    name = "odd"

    def info(self, reference):
        raise NotImplementedError

    def load(self, reference, device, dtype):
        raise NotImplementedError


def supplied(**hooks):
    """Plugins with one more, whose hooks return these."""

    class Brings:
        pass

    for name, returned in hooks.items():
        setattr(Brings, name, hookimpl(lambda self, returned=returned: returned))
    for name in hooks:
        getattr(Brings, name).__name__ = name
    plugins = tiny_plugins()
    plugins.add(Brings(), "brings")
    return plugins


def attempt(plugins, **changed):
    options = {
        "model": TinyModel(),
        "saes": [TinySAE()],
        "data": register_rows("guards", tiny_tokens()),
        "metrics": ["l0"],
    }
    return evaluate(**{**options, **changed}, plugins=plugins, allow=["*"])


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"info": raises}, "RuntimeError: planted"),
        ({"info": lambda self, reference: {"d_in": 3}}, "TypeError: 'info' returned dict, which is not an SAEInfo"),
        ({"expand": lambda self, reference: None}, "AttributeError"),
        ({"label": raises}, "RuntimeError: planted"),
        ({"__init__": lambda self: raises()}, "RuntimeError: planted"),
        ({"info": lambda self, reference: json.loads("{")}, "JSONDecodeError"),
    ],
)
def test_a_loader_that_raises_is_a_sentence_that_names_its_plugin(members, said):
    plugins = supplied(saeval_sae_loaders=[type("Odd", (Loader,), members)])
    with pytest.raises(SaevalError, match=rf"SAE format 'odd' \(plugin brings:brings\) failed: .*{said}"):
        attempt(plugins, saes=[{"use": "odd"}])


def test_a_loader_or_an_adapter_that_cannot_tell_whether_it_takes_an_object_takes_none():
    class Adapter(ModelAdapter):
        name = "aaa"

        def spec(self, reference):
            raise NotImplementedError

        def accepts(self, live):
            raise RuntimeError("planted")

    class NotEvenMade(Loader):
        name = "aab"

        def __init__(self):
            raise RuntimeError("planted")

    picky = type("Odd", (Loader,), {"accepts": raises})
    plugins = supplied(saeval_sae_loaders=[picky, NotEvenMade], saeval_models=[Adapter])
    assert [r.status for r in attempt(plugins)] == ["ok"]
    with pytest.raises(SaevalError, match="no adapter accepts an object of type object"):
        attempt(plugins, model=object())
    told = [str(failure) for failure in plugins.failures]
    assert any("brings:brings failed: SAE format 'odd': RuntimeError: planted" in one for one in told)
    assert any("brings:brings failed: SAE format 'aab': RuntimeError: planted" in one for one in told)
    assert any("brings:brings failed: model adapter 'aaa': RuntimeError: planted" in one for one in told)


class Spec(TinyModel):
    """A model whose adapter each test breaks in one place."""


class SpecAdapter(ModelAdapter):
    name = "spec-of-tests"
    made: ModelSpec

    def spec(self, reference):
        return self.made


@pytest.mark.parametrize("broken", ["identity", "hooks", "canonical", "context", "facts", "load"])
def test_a_model_spec_that_raises_anywhere_is_a_sentence_that_names_its_plugin(broken):
    spec = type("Broken", (Spec,), {broken: property(raises) if broken == "context" else raises})()
    adapter = type("Odd", (SpecAdapter,), {"made": spec})
    plugins = supplied(saeval_models=[adapter])
    said = r"model adapter 'spec-of-tests' \(plugin brings:brings\) failed: RuntimeError: planted"
    with pytest.raises(SaevalError, match=said):
        attempt(plugins, model={"use": "spec-of-tests"})


def test_a_sound_spec_behind_the_guard_is_what_it_was():
    adapter = type("Odd", (SpecAdapter,), {"made": Spec()})
    results = attempt(supplied(saeval_models=[adapter]), model={"use": "spec-of-tests"})
    assert results.value("l0.l0")["value"] == attempt(tiny_plugins()).value("l0.l0")["value"]


class Rows(InMemory):
    name = "odd-rows"

    def dataset(self, split, tokenizer=None):
        return Broken(*vars_of(tiny_tokens()))


def vars_of(rows):
    return rows.tokens, rows.documents, rows.clusters, rows.excluded


class Broken(type(tiny_tokens())):
    """Rows that cannot be drawn."""

    def batch(self, rows, device):
        raise RuntimeError("planted")


class NoFacts(InMemory):
    name = "odd-facts"

    def facts(self):
        raise RuntimeError("planted")


@pytest.mark.parametrize("source", [Rows, NoFacts])
@pytest.mark.parametrize("batch_size", [7, "auto"])
def test_data_that_raise_are_a_sentence_that_names_their_plugin(source, batch_size):
    register_rows("odd", tiny_tokens())
    plugins = supplied(saeval_data=[source])
    said = rf"data '{source.name}' \(plugin brings:brings\) failed: RuntimeError: planted"
    with pytest.raises(SaevalError, match=said):
        attempt(plugins, data={"use": source.name, "rows": "odd"}, batch_size=batch_size)


def test_an_odd_name_harms_no_other():
    class Numbered(Source):
        name = 3

        def fingerprint(self):
            return ""

    plugins = supplied(saeval_data=[Numbered, Unprintable()], saeval_reports=[Report(3), Unprintable()])
    assert [r.status for r in attempt(plugins)] == ["ok"]
    told = " ".join(str(failure) for failure in plugins.failures)
    assert "'name' is 3; it must be text" in told
    assert "saeval_data returned an object of Unprintable, which is no data source" in told


def test_a_check_and_provenance_that_are_none_are_failures_of_their_plugin():
    class Odd:
        @hookimpl
        def saeval_check(self, plan):
            return [Unprintable()]

        @hookimpl
        def saeval_provenance(self):
            return [{"x": Unprintable()}, 3]

        @hookimpl
        def saeval_run_started(self, plan):
            raise SystemExit(3)

    plugins = tiny_plugins()
    plugins.add(Odd(), "odd")
    results = attempt(plugins)
    assert [r.status for r in results] == ["ok"]
    told = " ".join(str(failure) for failure in plugins.failures)
    assert "expected Problems" in told
    assert "expected mappings (RuntimeError: planted)" in told
    assert "SystemExit: 3" in told


# ---- writers, and the command line

PLUGIN = '''
from saeval import Metric, Scalar, hookimpl
from saeval.results.report import Report


def broken(shown):
    raise RuntimeError("planted")


class Unshown:
    def __repr__(self):
        raise RuntimeError("planted")


class Odd(Metric):
    """Has a default that cannot be shown."""

    name, version = "odd", 1

    def __init__(self, x: object = Unshown()):
        self.x = x

    def conclude(self, W_dec):
        return Scalar(1.0)


@hookimpl
def saeval_metrics():
    return [Odd]


@hookimpl
def saeval_reports():
    return [
        Report("broken", broken, "A writer that raises", broken, broken),
        Report("textless", lambda boards: 3, "A writer of numbers"),
        Report("escaping", pages=lambda results: {"../escaped.txt": "x"}),
    ]
'''
SUITE = """
suite: guards
model: testbed
data: {use: python-stdlib, context: 16, sequences: 4}
saes: [testbed/topk-8]
metrics: [weights]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guards")
    (folder / "odd.py").write_text(PLUGIN)
    (folder / "s.yaml").write_text(SUITE)
    return folder


def said(capsys, *arguments, folder):
    code = cli.main([*arguments, "--plugin", str(folder / "odd.py")])
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return code, told.out, told.err


def test_a_writer_that_raises_keeps_the_results_and_is_named(folder, capsys):
    out = ["--out", str(folder / "results"), "--allow", "*"]
    for format, what in (
        ("broken", "RuntimeError: planted"),
        ("textless", "TypeError: it returned int, not text or bytes"),
    ):
        code, _, err = said(capsys, "run", str(folder / "s.yaml"), *out, "--format", format, folder=folder)
        assert code == 1
        assert f"report format '{format}' (plugin {folder / 'odd.py'}:odd) failed: {what}; the results are kept" in err
    results = str(folder / "results" / "guards")
    code, table, _ = said(capsys, "leaderboard", results, folder=folder)
    assert code == 0
    assert "testbed/topk-8" in table
    code, _, err = said(capsys, "leaderboard", results, "--format", "broken", folder=folder)
    assert code == 2
    assert "report format 'broken' (plugin " in err
    code, _, err = said(capsys, "report", results, "--to", str(folder / "pages"), folder=folder)
    assert code == 1
    assert "report 'broken' failed: RuntimeError: planted" in err
    assert "the page '../escaped.txt' is outside the report's folder" in err
    assert not (folder / "escaped.txt").exists()


def test_a_class_that_cannot_be_described_costs_its_own_line(folder, capsys):
    code, listed, _ = said(capsys, "ls", "metrics", folder=folder)
    assert code == 0
    assert "FAILED: RuntimeError: planted" in next(line for line in listed.splitlines() if line.startswith("odd "))
    assert any(line.startswith("l0 ") for line in listed.splitlines())
    code, _, err = said(capsys, "show", "odd", folder=folder)
    assert code == 2
    assert f"metric 'odd' (plugin {folder / 'odd.py'}:odd) failed: RuntimeError: planted" in err


def test_a_verb_of_a_plugin_that_raises_is_a_sentence(monkeypatch, capsys):
    class Verb:
        name, value, dist = "odd", "odd:main", None

        def load(self):
            raise ImportError("no module named planted")

    monkeypatch.setattr(cli.grammar, "_plugin_verbs", lambda: {"odd": Verb()})
    assert cli.main(["odd"]) == 2
    assert capsys.readouterr().err == "verb 'odd' (plugin odd:main) failed: ImportError: no module named planted\n"
