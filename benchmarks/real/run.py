"""The whole recipe: wheels, activations, SAEs, evaluation. Each stage skips what is finished.

python run.py FOLDER --model smollm2 --stages wheels activations saes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from activations import RECIPE
from train import ladder

HERE = Path(__file__).parent
STAGES = ("wheels", "activations", "saes", "post-training", "evaluation", "page")
POST_TRAINED = {"smollm2": ("blocks.14.hook_resid_post", "sparsify-topk-k32-seed0")}
"""The SAE of each model that is trained further on KL. Gemma 3's vocabulary would take six times as long."""
PROCESSES = max(1, (os.cpu_count() or 1))


def run(folder: Path, model: str, stage: str) -> None:
    """Run one stage of one model and add its time to `FOLDER/seconds.json`."""
    started = time.perf_counter()
    if stage == "wheels":
        _python(folder, "wheels.py", ".")
    elif stage == "activations":
        _python(folder, "activations.py", ".", "--model", model)
    elif stage == "saes":
        # One thread each: two SAEs at once take less time than one after the other on two threads.
        with ThreadPoolExecutor(PROCESSES) as pool:
            wanted = [f"{hook}/{sae.name}" for hook in RECIPE["models"][model]["hooks"] for sae in ladder(model, hook)]
            for each in [
                pool.submit(_python, folder, "train.py", ".", "--model", model, "--only", w, threads=1) for w in wanted
            ]:
                each.result()
    elif stage == "post-training" and model in POST_TRAINED:
        hook, sae = POST_TRAINED[model]
        _python(folder, "post_train.py", ".", "--model", model, "--hook", hook, "--sae", sae)
    elif stage == "page":
        _python(folder, "page.py", ".")
    elif stage == "evaluation":
        for suite in sorted((HERE / "suites").glob(f"*-{model}.yaml")):
            evaluate = [sys.executable, "-m", "saeval.cli", "run", str(suite), "--out", "results"]
            # The preflight finds that a random decoder was not trained on these activations, which is its purpose here.
            subprocess.run([*evaluate, "--allow", "*frozen*"], cwd=folder, check=True)
            _record(folder, model, suite.stem, started)
            started = time.perf_counter()
        return
    _record(folder, model, stage, started)


def _python(folder: Path, script: str, *arguments: str, threads: int | None = None) -> None:
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    subprocess.run([sys.executable, str(HERE / script), *arguments], cwd=folder, env=environment, check=True)


def _record(folder: Path, model: str, stage: str, started: float) -> None:
    file = folder / "seconds.json"
    seconds = json.loads(file.read_text()) if file.is_file() else {}
    name = f"{model}: {stage}"
    seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - started, 1)
    file.write_text(json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=RECIPE["models"], nargs="*", default=list(RECIPE["models"]))
    parser.add_argument("--stages", choices=STAGES, nargs="*", default=STAGES)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.model:
        for stage in arguments.stages:
            run(arguments.folder, name, stage)
