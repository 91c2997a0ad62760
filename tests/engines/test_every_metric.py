"""Every metric that is installed, by every engine that ships: the same bits as in one process."""

from __future__ import annotations

import pytest

from every_metric import plugins, suites
from fleet import values
from saeval.api import execute, prepare
from saeval.base.run_options import RunOptions
from saeval.engine.crew import crew_of
from saeval.registry.registry import Registry
from saeval.testing.claims import every, some

OPTIONS = {"local:2": [], "ray:2": [], "slurm:2": ["cluster=local"]}
BLOCKS = (10, 17, 256)
ADAPTIVE = {
    "suite": "adaptive",
    "model": {"use": "testbed"},
    "data": {"use": "python-stdlib", "sequences": 600, "context": 8},
    "saes": ["testbed/relu-3"],
    "controls": ["mean"],
    "metrics": ["l0", "ce"],
    "precision": {"ce.delta_ce": 5.0},
}


def plans(engine):
    """The plans of all metrics at each block size, and of an adaptive stop, in float32 and bfloat16."""
    registry = Registry(plugins())

    def planned(name, suite, block, **options):
        chosen = RunOptions(
            engine=engine, engine_option=OPTIONS.get(engine, []), block=block, batch_size=7, allow=["*"], **options
        )
        return prepare({**suite, "suite": name}, registry, chosen)

    for block in BLOCKS:
        for suite in some(suites(registry)):
            first = suite["saes"][0]
            of = [first] if isinstance(first, str) else [first["name"]]  # one SAE suffices, except for groups
            metrics = [
                {name: params if "over" in params else {**params, "of": of}}
                for entry in suite["metrics"]
                for name, params in entry.items()
            ]
            yield planned(f"{suite['suite']}-{block}", {**suite, "controls": [], "metrics": metrics}, block)
    for dtype in ("float32", "bfloat16"):
        yield planned(f"adaptive-{dtype}", ADAPTIVE, 50, dtype=dtype, sae_dtype=dtype)


def computed(engine, out):
    """The results of all plans by name, and their values bit for bit."""
    planned = list(plans(engine))
    crew = crew_of(planned, out)
    if crew is None:
        results = {plan.name: execute(plan, out) for plan in planned}
    else:
        with crew:
            results = {plan.name: execute(plan, out, crew=crew) for plan in planned}
    return results, {(name, *cell): held for name, r in results.items() for cell, held in values(r).items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return computed("local", tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray and submitit, about this machine
@pytest.mark.parametrize("engine", OPTIONS)
def test_every_metric_has_the_bits_of_one_process(engine, alone, tmp_path):
    pytest.importorskip({"ray:2": "ray", "slurm:2": "submitit"}.get(engine, "saeval"))
    _, expected = alone
    _, found = computed(engine, tmp_path)
    assert [cell for cell in {**expected, **found} if expected.get(cell) != found.get(cell)] == []
    assert list(tmp_path.glob("*/shards/*")) == list(tmp_path.glob(".workers*")) == []


@pytest.mark.slow
def test_every_metric_is_among_them_and_the_adaptive_run_stops_early(alone):
    results, bits = alone
    for block in some(BLOCKS):
        ok = {metric for (name, metric, _), held in bits.items() if name.endswith(f"-{block}") and held[0] == "ok"}
        assert ok == set(Registry(plugins()).metrics.names()), "each needs a case in tests/interfaces/every_metric.py"
    for dtype in ("float32", "bfloat16"):
        adaptive = results[f"adaptive-{dtype}"]
        assert every(result.sample["stopped_adaptively"] and result.sample["sequences"] < 600 for result in adaptive)
        assert every(result.provenance["dtypes"]["model"] == dtype for result in adaptive)
    assert bits["adaptive-float32", "ce", "testbed/relu-3"] != bits["adaptive-bfloat16", "ce", "testbed/relu-3"]
