"""The time of a sweep, 1,000 SAEs on ten models, on 1 to 512 workers, from costs that it measures first.

    python benchmarks/makespan.py --measure costs.json    # about two minutes of CPU time, 3 GB of memory
    python benchmarks/makespan.py --costs costs.json

It measures a random model of the shape of GPT-2 small and random ReLU SAEs of 24,576 features, with `l0`, `density`,
`reconstruction`, `ce` and `kl`, in CPU time of one thread; and the sums of 4,096 documents, on a small model. Then the
crew that hands out the tasks of a run hands out those of the sweep, to workers that only say how long each would take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from saeval.api import execute, prepare
from saeval.base.run_options import RunOptions
from saeval.engine.crew import Crew, Task, _Errand
from saeval.engine.loop import Engine
from saeval.engine.running_pass import RunningPass
from saeval.plugin import Worker, WorkerEngine, WorkerSession, hookimpl
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry

METRICS = ["l0", "density", "reconstruction", {"ce": {"ablation": "mean"}}, {"kl": {"ablation": "mean"}}]
D_SAE = 24576
TEXT = {"bos": False, "exclude": []}


@dataclass
class Costs:
    """Seconds of CPU time of one thread."""

    start: float
    """A process, until saeval and torch are imported."""
    join: float
    """Planning the suite in a worker, with the hashes of its files in the cache: for each SAE."""
    model: float
    """Loading the model."""
    load: float
    """Loading an SAE."""
    examine: float
    """The preflight of an SAE, with its loading."""
    clean: float
    """A pass over a sequence without SAEs: the clean pass and the resume of the ablation."""
    each: float
    """An SAE's work on a sequence."""
    fold: float
    """A sequence of the pass before, which sums the mean."""
    write: float
    """Writing the sums of a block, for each SAE; in `clean` and `each` it is not."""
    add: float
    """Reading and adding the sums of a block in the first process, for each SAE."""
    conclude: float
    """Concluding the cells of an SAE in the first process, and writing their results."""


# Measuring

SPENT: dict[str, list[tuple[Any, float]]] = defaultdict(list)
"""What each kind of work took: facts of it, and the seconds."""


class Timed(Worker):
    """A session in this process, whose requests are timed."""

    name = "timed"

    def __init__(self) -> None:
        self._session, self._text = WorkerSession(), None

    def send(self, request: str) -> None:
        begun = time.process_time()
        self._text = self._session.answer(request)
        asked = json.loads(request)
        SPENT[asked["do"]].append((asked.get("block"), time.process_time() - begun))

    def answer(self) -> str | None:
        text, self._text = self._text, None
        return text

    def ended(self) -> str | None:
        return None


class TimedEngine(WorkerEngine):
    """One worker in this process."""

    name = "timed"

    def start(self, count: int | None, needs: object, folder: Path) -> list[Worker]:
        return [Timed()]

    def stop(self) -> None:
        pass


@hookimpl
def saeval_engines() -> list[type[WorkerEngine]]:
    return [TimedEngine]


def timed(cls: type, name: str) -> None:
    """Note the time of each call of a method."""
    function = getattr(cls, name)

    def call(self: Any, *given: Any, **named: Any) -> Any:
        begun = time.process_time()
        try:
            return function(self, *given, **named)
        finally:
            SPENT[name].append((getattr(self, "kind", None), time.process_time() - begun))

    setattr(cls, name, call)


@dataclass(frozen=True)
class World:
    """A model, SAEs of about 64 active features and tokens, each row a document of its own."""

    layers: int
    d_in: int
    vocabulary: int
    context: int
    rows: int
    block: int

    def write(self, folder: Path, saes: int) -> None:
        torch.manual_seed(0)
        heads = self.d_in // 64
        config = GPT2Config(n_layer=self.layers, n_embd=self.d_in, n_head=heads, vocab_size=self.vocabulary)
        model = GPT2LMHeadModel(config).eval()
        model.save_pretrained(folder / "model")
        tokens = torch.randint(0, self.vocabulary, (self.rows, self.context + 1))
        np.save(folder / "tokens.npy", tokens.numpy().astype(np.int32))
        with torch.no_grad():
            states = model(tokens[: -(-256 // self.context)], output_hidden_states=True).hidden_states
        x = states[self.layers // 2].flatten(0, 1)
        for number in range(saes):
            decoder = torch.nn.functional.normalize(torch.randn(D_SAE, self.d_in), dim=1)
            bias = float(((x - x.mean(0)) @ decoder.T).flatten()[: 2**22].quantile(1 - 64 / D_SAE))
            weights = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_dec": x.mean(0)}
            weights["b_enc"] = torch.full((D_SAE,), -bias)
            own = folder / f"sae-{number}"
            own.mkdir()
            save_file(weights, own / "sae_weights.safetensors")
            hook_name = f"blocks.{self.layers // 2}.hook_resid_pre"
            facts = {
                "architecture": "standard", "d_in": self.d_in, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
                "apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": {"hook_name": hook_name},
            }  # fmt: skip
            (own / "cfg.json").write_text(json.dumps(facts))

    def run(self, folder: Path, saes: int, registry: Registry) -> dict[str, list[float]]:
        """Run a suite of some of the SAEs; return the seconds of each piece of work, by its name."""
        suite = {
            "suite": f"of-{saes}", "model": {"use": "huggingface", "path": str(folder / "model")},
            "data": {"use": "tokens", "path": str(folder / "tokens.npy"), "context": self.context, **TEXT},
            "saes": [{"use": "saelens", "path": str(folder / f"sae-{i}"), "name": f"s{i}"} for i in range(saes)],
            "metrics": METRICS, "batch": min(16, self.block),
        }  # fmt: skip
        plan = prepare(suite, registry, RunOptions(engine="timed", block=self.block, allow=["*"]))
        SPENT.clear()
        begun = time.process_time()
        assert plan.spec is not None
        plan.spec.load("cpu")
        SPENT["model"].append((None, time.process_time() - begun))
        execute(plan, folder / "out")
        of_shards = {name: [(fact, s) for fact, s in spent if name != "save" or fact == "shards"]
                     for name, spent in SPENT.items()}  # fmt: skip
        found = {name: [seconds for _, seconds in spent] for name, spent in of_shards.items()}
        print(f"{saes} SAEs: { ({name: [round(s, 3) for s in spent] for name, spent in found.items()}) }")
        return found


LARGE = World(layers=12, d_in=768, vocabulary=50257, context=127, rows=8, block=2)
"""Shaped as GPT-2 small, for the passes."""
MANY = World(layers=2, d_in=64, vocabulary=500, context=8, rows=4096, block=256)
"""As many documents as the sweep has, for the sums, whose size depends on them."""
SAES = 3


def runs(world: World, registry: Registry) -> dict[int, dict[str, list[float]]]:
    """Return what a run with one SAE and one with several have spent."""
    with tempfile.TemporaryDirectory() as name:
        world.write(Path(name), SAES)
        return {saes: world.run(Path(name), saes, registry) for saes in (1, SAES)}


def middle(values: Sequence[float]) -> float:
    return float(np.median(values))


def registered() -> Registry:
    """The plugins and this file, with the methods timed that work in the first process."""
    torch.set_num_threads(1)
    for cls, name in ((RunningPass, "add_shard"), (RunningPass, "save"), (Engine, "_conclude")):
        timed(cls, name)
    registry = Registry(Plugins([__file__]))
    module = sys.modules[registry.engines["timed"].__module__]  # a plugin file is a module of its own
    globals()["SPENT"] = module.SPENT  # type: ignore[attr-defined]
    return registry


def costs_of_passes(registry: Registry) -> dict[str, float]:
    """Run one suite with one SAE and with several, and take the costs of each SAE from the difference."""
    before = getrusage(RUSAGE_CHILDREN)
    imports = "import torch, transformers; from saeval.plugin import WorkerSession; WorkerSession()"
    subprocess.run([sys.executable, "-c", imports], check=True)
    after = getrusage(RUSAGE_CHILDREN)
    found = runs(LARGE, registry)
    one, many = found[1], found[SAES]
    blocks, block = len(one["block"]) // 2, LARGE.block  # of the pass for the mean, then of the pass of the cells
    steady = {k: middle(found[k]["block"][blocks + 1 :]) - middle(found[k]["save"][blocks:]) for k in found}
    first = many["block"][blocks] - many["save"][blocks] - steady[SAES]
    each = (steady[SAES] - steady[1]) / (SAES - 1)
    return {
        "start": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "join": many["join"][0] / SAES, "model": middle(many["model"]), "load": first / SAES,
        "examine": (many["preflight"][0] - one["preflight"][0]) / (SAES - 1),
        "clean": (steady[1] - each) / block, "each": each / block, "fold": middle(one["block"][1:blocks]) / block,
    }  # fmt: skip


def costs_of_sums(registry: Registry) -> dict[str, float]:
    """The same for the sums of blocks: writing, adding and concluding them."""
    found = runs(MANY, registry)
    blocks = len(found[1]["block"]) // 2
    of = {name: {k: middle(found[k][name][blocks:]) for k in found} for name in ("save", "add_shard")}
    return {
        "write": (of["save"][SAES] - of["save"][1]) / (SAES - 1),
        "add": (of["add_shard"][SAES] - of["add_shard"][1]) / (SAES - 1),
        "conclude": sum(found[SAES]["_conclude"]) / SAES,
    }


# Simulating


class Clock:
    """The time of the simulation."""

    now = 0.0


@dataclass
class Sweep:
    """What is to be computed: the same suite for each of several models."""

    models: int
    saes: int
    together: int
    sequences: int
    block: int

    @property
    def blocks(self) -> int:
        return -(-self.sequences // self.block)

    @property
    def passes(self) -> int:
        return -(-self.saes // self.together)

    def work(self, costs: Costs) -> float:
        """Seconds of the passes alone, without loading, writing and adding."""
        own = self.passes * (costs.clean + self.together * costs.each)
        return self.models * self.sequences * (costs.fold + own)


class Simulated(Worker):
    """A worker that knows how long each request takes it, given what it holds."""

    def __init__(self, number: int, clock: Clock, costs: Costs, sweep: Sweep, spent: dict[str, float]) -> None:
        self.name, self._clock, self._costs, self._sweep, self._spent = f"w{number}", clock, costs, sweep, spent
        self._model: str | None = None
        self._pass: object = None
        self.until = costs.start
        self._open = False

    def send(self, request: str) -> None:
        asked, costs, sweep = json.loads(request), self._costs, self._sweep
        took = defaultdict(float)
        if asked["do"] == "join":
            took["joining"] = costs.join * sweep.saes
        else:
            if self._model != asked["name"]:
                took["loading models"], self._model, self._pass = costs.model, asked["name"], None
            if asked["do"] == "preflight":
                took["preflights"] = costs.examine * sweep.saes
            elif asked["pass"] == "mean":
                took["passes"] = costs.fold * sweep.block
            else:
                if self._pass != asked["pass"]:
                    took["loading SAEs"], self._pass = costs.load * sweep.together, asked["pass"]
                took["passes"] = sweep.block * (costs.clean + sweep.together * costs.each)
                took["writing sums"] = costs.write * sweep.together
        for what, seconds in took.items():
            self._spent[what] += seconds
        self.until = max(self._clock.now, self.until) + sum(took.values())
        self._open = True

    def answer(self) -> str | None:
        if not self._open or self.until > self._clock.now:
            return None
        self._open = False
        return "{}"

    def ended(self) -> str | None:
        return None


def tasks_of(model: str, costs: Costs, sweep: Sweep) -> Iterator[tuple[list[Task], float]]:
    """Yield what the run of a model waits for, one step after the other, and what the first process does then."""

    def blocks(pass_: str) -> list[Task]:
        return [Task({"do": "block", "name": model, "pass": pass_, "block": i}) for i in range(sweep.blocks)]

    yield [Task({"do": "preflight", "name": model})], 0.0
    yield blocks("mean"), sweep.blocks * costs.add
    own = [task for number in range(sweep.passes) for task in blocks(f"pass {number}")]
    yield own, sweep.saes * (sweep.blocks * costs.add + costs.conclude)


def simulated(workers: int, costs: Costs, sweep: Sweep) -> tuple[float, dict[str, float]]:
    """Return the seconds until everything is done, and what all processes spent them on."""
    clock, spent = Clock(), defaultdict[str, float](float)
    crew = Crew(TimedEngine(), None, [], Path())
    crew.workers = [Simulated(number, clock, costs, sweep, spent) for number in range(workers)]
    names = [f"model {number}" for number in range(sweep.models)]
    crew._joining = {name: {"do": "join", "name": name} for name in names}
    crew._models = {name: name for name in names}
    for worker in crew.workers:  # all join all suites first
        for name in names:
            worker.send(json.dumps(crew._joining[name]))
            crew._joined.add((worker, name))
        worker._open = False  # type: ignore[attr-defined]
    runs = {name: tasks_of(name, costs, sweep) for name in names}
    waiting: dict[str, tuple[_Errand, float]] = {}
    for name in names:
        tasks, after = next(runs[name])
        waiting[name] = _Errand(tasks), after
        crew._errands.append(waiting[name][0])
    while waiting:
        crew._hand_out()
        clock.now = max(clock.now, min(w.until for w in crew._open))  # type: ignore[attr-defined]
        crew._look()
        for name, (errand, after) in list(waiting.items()):
            if errand.waiting or errand.running:
                continue
            crew._errands.remove(errand)
            clock.now += after  # nobody gets a new task meanwhile
            spent["the first process, adding and concluding"] += after
            del waiting[name]
            if (step := next(runs[name], None)) is not None:
                waiting[name] = _Errand(step[0]), step[1]
                crew._errands.append(waiting[name][0])
    return clock.now, dict(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--measure", type=Path, help="measure the costs, and write them into this file")
    source.add_argument("--costs", type=Path, help="a file of costs that was written before")
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--saes", type=int, default=100, help="SAEs of each model (default: 100)")
    parser.add_argument("--together", type=int, default=25, help="SAEs that fit in memory together (default: 25)")
    parser.add_argument("--sequences", type=int, default=4096)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    given = parser.parse_args()
    if given.measure:
        registry = registered()
        costs = Costs(**costs_of_passes(registry), **costs_of_sums(registry))
        given.measure.write_text(json.dumps(asdict(costs), indent=1))
    else:
        costs = Costs(**json.loads(given.costs.read_text()))
    print(json.dumps({name: round(seconds, 4) for name, seconds in asdict(costs).items()}))
    sweep = Sweep(given.models, given.saes, given.together, given.sequences, given.block)
    ideal = sweep.work(costs)
    print(
        f"the passes alone: {ideal / 3600:.1f} hours on one worker; {sweep.models * sweep.passes * sweep.blocks} shards"
    )
    print("| workers | hours | ideal | in use |\n|---|---|---|---|")
    for workers in given.workers:
        seconds, spent = simulated(workers, costs, sweep)
        print(f"| {workers} | {seconds / 3600:.2f} | {ideal / workers / 3600:.2f} | {ideal / workers / seconds:.0%} |")
        shares = sorted(spent.items(), key=lambda pair: -pair[1])
        print("  ", ", ".join(f"{what} {own / 3600:.2f} h" for what, own in shares), file=sys.stderr)


if __name__ == "__main__":
    main()
