"""`saeval testbed`: train the testbed's weights again, or write its preference pairs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from saeval.plugin import FREE_SPACE, SaevalError, write_whole

PARTS = ("model", "reward", "saes", "synthetic")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="saeval testbed", description="The small model and SAEs that ship with saeval."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    train = verbs.add_parser("train", help="train the models and their SAEs; needs the extra 'saelens'")
    train.add_argument("--out", type=Path, default=Path("testbed"), help="folder to write (default: testbed)")
    train.add_argument(
        "--only",
        choices=PARTS,
        help="train this part only; reward and saes need OUT/model",
    )
    train.add_argument("--names", nargs="+", help="train these SAEs only")
    pairs = verbs.add_parser("preferences", help="write the preference pairs with the planted preference")
    pairs.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    pairs.add_argument("--split", choices=["train", "held_out"], default="held_out", help="default: held_out")
    pairs.add_argument("--pairs", type=int, default=1000, help="number of pairs (default: 1000)")
    pairs.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    return _preferences(arguments) if arguments.verb == "preferences" else _train(arguments)


def _preferences(arguments: argparse.Namespace) -> int:
    from saeval_testbed.preferences import preference_pairs  # late: it imports tokenizers

    lines = [json.dumps(pair) for pair in preference_pairs(arguments.split, arguments.pairs, arguments.seed)]
    write_whole(arguments.out, "".join(f"{line}\n" for line in lines).encode(), f"{FREE_SPACE} --out")
    print(f"{arguments.out}: {len(lines)} pairs")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    out, names = arguments.out, arguments.names
    parts = [arguments.only] if arguments.only else list(PARTS)
    if "model" in parts:
        from saeval_testbed.language_model import train_language_model  # late: it imports transformers

        train_language_model(out / "model")
    elif arguments.only != "synthetic" and not (out / "model" / "config.json").exists():
        raise SaevalError(f"{out / 'model'}: no model; train it first (--only model)")
    if "reward" in parts:
        from saeval_testbed.reward_model import train_reward_model  # late: it imports transformers

        train_reward_model(out)
    if "saes" in parts or "synthetic" in parts:
        _train_saes(out, names, parts)
    return 0


def _train_saes(out: Path, names: list[str] | None, parts: list[str]) -> None:
    try:
        import sae_lens  # noqa: F401  # late: an optional extra
    except ImportError:
        raise SaevalError("training SAEs needs sae-lens: pip install 'saeval[saelens]'") from None
    from saeval_testbed.dictionaries import train_dictionaries  # late: an optional extra trains them
    from saeval_testbed.end_to_end import MATCHED, train_matched
    from saeval_testbed.recipes import RECIPES, SYNTHETIC, Recipe

    known: list[Recipe] = [*(RECIPES if "saes" in parts else ()), *(SYNTHETIC if "synthetic" in parts else ())]
    matched = [recipe for recipe in (MATCHED if "saes" in parts else ()) if names is None or recipe.name in names]
    chosen = [recipe for recipe in known if names is None or recipe.name in names]
    if unknown := set(names or []) - {recipe.name for recipe in chosen} - {recipe.name for recipe in matched}:
        raise SaevalError(f"no recipe for the SAE {', '.join(sorted(unknown))}")
    for recipe in matched:
        train_matched(recipe, out)
    train_dictionaries(out, chosen)
