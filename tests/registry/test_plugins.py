"""Plugins: discovered, attributed, guarded; a broken one is named and harms nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from saeval import Mean, Metric, SaevalError, Scalar, cli, hookimpl
from saeval.cli.listing import listing
from saeval.interfaces.model import RegisteredModel
from saeval.registry.discovery import Plugins
from saeval.registry.kinds import KINDS
from saeval.registry.registry import Registry
from saeval.testing import check_metric, evaluate_tiny, tiny_plugins
from saeval.testing.claims import some

README = (Path(__file__).parents[2] / "README.md").read_text()
DEAD = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class DeadFeatures" in block)

SUITE = """\
suite: third-party
model: {use: testbed}
data: {use: python-stdlib, context: 32, sequences: 8}
saes: [testbed/relu-5, testbed/topk-8]
metrics: [dead_features, l0]
leaderboard: {rank_by: dead_features.dead_features}
"""


def install(target, name, module, body):
    """A real distribution with a `saeval` entry point, installed by pip."""
    source = target.parent / f"{name}-source"
    source.mkdir()
    (source / f"{module}.py").write_text(body)
    (source / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{name}"\nversion = "1.0"\n'
        f'[project.entry-points.saeval]\nmain = "{module}"\n'
        f'[tool.setuptools]\npy-modules = ["{module}"]\n'
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    subprocess.run([*command, str(source)], check=True, capture_output=True, text=True)


def saeval(*arguments, path, cwd):
    """What a fresh process says, which ends well."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-m", "saeval.cli", *arguments]
    ran = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages: a sound plugin and a broken one."""
    site = tmp_path_factory.mktemp("plugins") / "site"
    install(site, "saeval-dead", "saeval_dead", DEAD)
    install(site, "saeval-broken", "saeval_broken", "import a_module_that_does_not_exist\n")
    return site


@pytest.mark.slow
def test_an_installed_plugin_runs_and_a_broken_one_beside_it_harms_nothing(site, tmp_path):
    assert len(DEAD.splitlines()) <= 25
    (tmp_path / "s.yaml").write_text(SUITE)
    ran = saeval("run", "s.yaml", "--format", "json", path=site, cwd=tmp_path)
    assert "saeval-broken:main failed" in ran.stderr
    rows = {row["name"]: row for row in json.loads(ran.stdout)}
    for row in some(rows.values()):
        assert 0 <= row["dead_features.dead_features"] <= 1
        assert row["l0.l0"] > 0
    assert set(rows) == {"testbed/relu-5", "testbed/topk-8"}


def test_installed_plugins_are_listed_with_their_package_and_a_broken_one_with_its_error(
    site, tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(site)
    assert cli.main(["ls", "metrics", "--json"]) == 0
    (dead,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "dead_features"]
    assert dead["from"] == "saeval-dead:main"
    assert cli.main(["ls", "plugins"]) == 0
    plugins = capsys.readouterr().out
    assert "saeval-broken:main" in plugins
    assert "No module named 'a_module_that_does_not_exist'" in plugins
    (tmp_path / "s.yaml").write_text(SUITE)
    assert cli.main(["run", str(tmp_path / "s.yaml"), "--set", "metrics.0=absent"]) == 2
    told = capsys.readouterr().err
    assert "unknown metric 'absent'" in told
    assert "saeval-broken:main failed" in told


@pytest.mark.parametrize(
    ("metadata", "beside", "url", "editable"),
    [
        ("{}.egg-info/PKG-INFO", (), None, True),  # left by a build in the source tree
        ("{}-1.dist-info/METADATA", (), None, True),
        ("{}-1.dist-info/METADATA", ("RECORD",), None, False),
        ("{}-1.dist-info/METADATA", ("INSTALLER",), None, False),
        ("{}-1.dist-info/METADATA", ("RECORD",), '{"dir_info": {"editable": true}}', True),
        ("{}-1.dist-info/METADATA", ("RECORD",), "{", True),
    ],
)
def test_code_counts_as_a_version_only_where_an_installer_put_it(
    metadata, beside, url, editable, tmp_path, monkeypatch
):
    path = tmp_path / metadata.format("planted")
    path.parent.mkdir()
    path.write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n", encoding="utf-8")
    (path.parent / "entry_points.txt").write_text("[saeval]\nplanted = planted_plugin\n", encoding="utf-8")
    for name in beside:
        (path.parent / name).write_text("pip\n", encoding="utf-8")
    if url is not None:
        (path.parent / "direct_url.json").write_text(url, encoding="utf-8")
    (tmp_path / "planted_plugin.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert Plugins().origins["planted:planted"].editable is editable


def test_a_plugin_file_is_loaded_by_name(tmp_path, capsys):
    file = tmp_path / "dead.py"
    file.write_text(DEAD)
    assert cli.main(["ls", "metrics", "--plugin", str(file)]) == 0
    assert "dead_features" in capsys.readouterr().out
    assert cli.main(["ls", "metrics", "--plugin", str(tmp_path / "none.py")]) == 2
    assert "no such file" in capsys.readouterr().err
    file.write_text("def (")
    assert cli.main(["ls", "metrics", "--plugin", str(file)]) == 2
    assert "SyntaxError" in capsys.readouterr().err


class _Claimant:
    """Supplies a metric of its own under a name that another claims too."""

    def __init__(self):
        class Claim(Metric):
            name, version = "claimed", 1

            def conclude(self, W_dec):
                return Scalar(0.0)

        self.claim = Claim

    @hookimpl
    def saeval_metrics(self):
        return [self.claim]


def test_two_claims_on_one_name_are_refused_naming_both():
    plugins = Plugins()
    plugins.add(_Claimant(), "first")
    plugins.add(_Claimant(), "second")
    registry = Registry(plugins)
    with pytest.raises(SaevalError, match="'claimed' is supplied by both first:first and second:second; rename one or"):
        registry.metrics["claimed"]
    assert registry.metrics["l0"].name == "l0"


class _Supplier:
    """Supplies the one thing of every kind that it is given, as another plugin does."""

    def __init__(self, **things):
        for hook, thing in things.items():
            setattr(self, hook, hookimpl(lambda thing=thing: [thing]))


def doubled(activations):
    """Twice the activations."""
    return 2 * activations


class Doubled:
    """The same as an object that is called."""

    __name__ = "doubled_object"

    def __call__(self, activations):
        return 2 * activations


INSTALLED = Registry(Plugins())


@pytest.mark.parametrize(
    ("hook", "thing", "attribute", "name"),
    [
        ("saeval_quantities", doubled, "quantities", "doubled"),
        ("saeval_quantities", Doubled(), "quantities", "doubled_object"),
        *(
            pytest.param(kind.hook, entry.thing, kind.attribute, entry.name, id=kind.attribute)
            for kind, names in INSTALLED.every()
            for entry in list(names)[:1]
            if kind.attribute != "quantities"
        ),
    ],
)
def test_one_thing_that_two_plugins_supply_is_no_conflict(hook, thing, attribute, name):
    plugins = Plugins(discover=False)
    plugins.add(_Supplier(**{hook: thing}), "first")
    plugins.add(_Supplier(**{hook: thing}), "second")
    assert not plugins.failures
    names = getattr(Registry(plugins), attribute)
    assert names.entry(name).origin.distribution == "first"
    assert name not in names.duplicates()


def test_two_functions_of_one_name_are_refused():
    def other(activations):
        return activations

    other.__name__ = "doubled"
    plugins = Plugins(discover=False)
    plugins.add(_Supplier(saeval_quantities=doubled), "first")
    plugins.add(_Supplier(saeval_quantities=other), "second")
    with pytest.raises(SaevalError, match="'doubled' is supplied by both first:first and second:second"):
        Registry(plugins).quantities["doubled"]


def test_check_metric_takes_a_quantity_that_an_installed_plugin_supplies():
    class ErrorNorm(Metric):
        """Mean squared norm of an activation minus the mean activation.

        Values:
            error_norm: mean of the squared distance; squared units; ≥ 0; no better direction.
        """

        name = "error_norm"

        def observe(self, activations, activation_mean, mask):
            return Mean.of((activations - activation_mean.to(activations)).square().sum(-1), mask)

        def conclude(self, total):
            return Scalar(total.value, unit="squared units")

    supplied = INSTALLED.quantities.entry("activation_mean").supplied
    check_metric(ErrorNorm, quantities=[supplied])


def test_a_hook_that_raises_or_returns_no_list_is_a_failure_of_its_plugin_alone():
    class Raises:
        @hookimpl
        def saeval_metrics(self):
            raise RuntimeError("planted")

    class Returns:
        @hookimpl
        def saeval_metrics(self):
            return Metric

    class Misspells:
        @hookimpl
        def saeval_metrcs(self):
            return []

    class WrongThing:
        @hookimpl
        def saeval_controls(self):
            return ["not a class"]

    plugins = Plugins()
    for plugin in (Raises(), Returns(), Misspells(), WrongThing()):
        plugins.add(plugin, type(plugin).__name__)
    registry = Registry(plugins)
    assert "l0" in registry.metrics
    assert "zero" in registry.controls
    told = {f.origin.distribution: f.error for f in plugins.failures}
    assert told["Raises"] == "RuntimeError: planted"
    assert "return a list" in told["Returns"]
    assert "did you mean 'saeval_metrics'?" in told["Misspells"]
    assert "is no control" in told["WrongThing"]


def test_every_kind_of_name_is_an_attribute_of_the_registry_and_listed():
    registry = Registry(Plugins())
    assert set(Registry.__annotations__) == {kind.attribute for kind in KINDS}
    for kind, names in some(registry.every()):
        assert names is getattr(registry, kind.attribute)
        assert set(names.names()) <= {row["name"] for row in listing(registry, kind.listed)}
    with pytest.raises(AttributeError, match="a registry has no 'metric'"):
        registry.metric  # noqa: B018


def test_a_model_of_neither_kind_is_a_failure_and_one_supplied_twice_is_listed_as_refused():
    class Supplies:
        def __init__(self, *models):
            self.models = models

        @hookimpl
        def saeval_models(self):
            return list(self.models)

    plugins = Plugins()
    plugins.add(Supplies("no model", RegisteredModel("twice", "huggingface", {})), "first")
    plugins.add(Supplies(RegisteredModel("twice", "huggingface", {})), "second")
    rows = [row for row in listing(Registry(plugins), "models") if row["name"] == "twice"]
    assert rows[-1]["description"] == "ERROR: provided twice"
    (failure,) = [f for f in plugins.failures if f.origin.distribution == "first"]
    assert failure.error == "saeval_models returned 'no model', which is no model or model adapter"


class Unfinished(Metric):
    name, version = "unfinished", 1

    def observe(self, mask):
        return None


class Nameless(Metric):
    version = 1

    def conclude(self, W_dec):
        return Scalar(0.0)


class Forgetful(Metric):
    name, version = "forgetful", 1

    def observe(self, mask):
        return None

    def conclude(self):
        return Scalar(0.0)


class OneName(Metric):
    name, headline = "onename", "l0"

    def conclude(self, W_dec):
        return Scalar(0.0)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (OneName, "'headline' is 'l0'; it must be a list of names of values"),
        (Unfinished, "it has no method 'conclude'"),
        (Nameless, "'name' is None"),
        (Forgetful, "'conclude' must take the total"),
    ],
)
def test_a_malformed_metric_is_named_and_harms_nothing(metric, said):
    plugins = tiny_plugins(metric)
    assert "l0" in Registry(plugins).metrics
    assert any(metric.__name__ in f.error and said in f.error for f in plugins.failures)
    name = getattr(metric, "name", None) or "nameless"
    with pytest.raises(SaevalError, match=f"unknown metric '{name}'.*{re.escape(said)}"):
        evaluate_tiny([name], metric)
    assert evaluate_tiny(["l0"], metric).value("l0.l0")["value"] > 0


def test_a_plugins_own_bug_while_planning_is_one_sentence_that_names_it(tmp_path):
    from saeval.interfaces.sae import SAELoader

    class Buggy(SAELoader):
        name = "buggy"

        def info(self, reference):
            return {}["d_in"]

        def load(self, reference, device, dtype):
            raise NotImplementedError

    class Half(SAELoader):
        name = "half"

        def info(self, reference):
            raise NotImplementedError

    class Brings:
        @hookimpl
        def saeval_sae_loaders(self):
            return [Buggy, Half]

    from saeval.testing import TinyModel, evaluate, register_rows, tiny_tokens

    plugins = tiny_plugins()
    plugins.add(Brings(), "brings")
    data = register_rows("buggy", tiny_tokens())
    run = {"model": TinyModel(), "data": data, "metrics": ["l0"], "plugins": plugins}
    with pytest.raises(SaevalError, match=r"SAE format 'buggy' \(plugin brings:brings\) failed: KeyError: 'd_in'"):
        evaluate(saes=[{"use": "buggy"}], **run)
    with pytest.raises(SaevalError, match=r"unknown SAE format 'half'.*it does not implement load"):
        evaluate(saes=[{"use": "half"}], **run)


def test_notifications_reach_plugins_and_a_failing_one_costs_nothing():
    heard = []

    class Listener:
        @hookimpl
        def saeval_run_started(self, plan):
            heard.append(("started", plan.name))

        @hookimpl
        def saeval_cell_finished(self, result):
            heard.append(("cell", result.metric))
            raise RuntimeError("planted")

        @hookimpl
        def saeval_run_finished(self, results):
            heard.append(("finished", len(results)))

        @hookimpl
        def saeval_provenance(self):
            return [{"cluster": "here"}]

    from saeval.testing import TinyModel, TinySAE, evaluate, register_rows, tiny_tokens

    plugins = tiny_plugins()
    plugins.add(Listener(), "listener")
    data = register_rows("notified", tiny_tokens())
    results = evaluate(model=TinyModel(), saes=[TinySAE()], data=data, metrics=["l0"], plugins=plugins, allow=["*"])
    assert heard == [("started", "evaluate"), ("cell", "l0"), ("finished", 1)]
    assert results[0].provenance["plugin_facts"] == {"listener:listener": {"cluster": "here"}}


def test_a_plugins_check_stops_the_run():
    from saeval.base.errors import Problem
    from saeval.testing import TinyModel, TinySAE, evaluate, register_rows, tiny_tokens

    class Strict:
        @hookimpl
        def saeval_check(self, plan):
            return [Problem(f"too few sequences: {len(plan.streams.evaluation)}")]

    plugins = tiny_plugins()
    plugins.add(Strict(), "strict")
    model = TinyModel()
    data = register_rows("checked", tiny_tokens())
    with pytest.raises(SaevalError, match="too few sequences: 24"):
        evaluate(model=model, saes=[TinySAE()], data=data, metrics=["l0"], plugins=plugins)
    assert sum(model.passes.values()) == 0


@pytest.mark.parametrize("name", ["l0", "density", "reconstruction", "ce", "kl"])
def test_every_metric_passes_the_conformance_check(name):
    metric = Registry(Plugins()).metrics[name]
    meant = {"by_position": ["by_position"]} if name == "l0" else {}
    values = check_metric(metric, controls=["identity", "zero", "mean"], **meant)
    assert any(value is not None for value in values.values())


def test_the_conformance_check_catches_a_batch_dependent_metric():
    from saeval import Mean

    class PerBatch(Metric):
        """The norm of the activations, divided by the batch size."""

        name, version = "per_batch", 1

        def observe(self, activations, mask):
            return Mean.of(activations.norm(dim=-1) / len(activations), mask)

        def conclude(self, total):
            return Scalar(total.value)

    with pytest.raises(AssertionError, match="batch size"):
        check_metric(PerBatch)
