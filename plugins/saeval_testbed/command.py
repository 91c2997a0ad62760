"""`saeval testbed train`: make the testbed's weights again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from saeval.errors import SaevalError


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="saeval testbed", description="The small model and SAEs that ship with saeval."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    train = verbs.add_parser("train", help="train the model and its SAEs; needs the extra 'saelens'")
    train.add_argument("--out", type=Path, default=Path("testbed"), help="folder to write (default: testbed)")
    train.add_argument("--only", choices=["model", "saes"], help="a part; SAEs need OUT/model")
    train.add_argument("--names", nargs="+", help="only these SAEs")
    arguments = parser.parse_args(argv)
    if arguments.only != "saes":
        from saeval_testbed.language_model import train_language_model  # late: imports transformers

        train_language_model(arguments.out / "model")
    if arguments.only != "model":
        try:
            import sae_lens  # noqa: F401  # only to say clearly that it is missing
        except ImportError:
            raise SaevalError("training SAEs needs sae-lens: pip install 'saeval[saelens]'") from None
        from saeval_testbed.dictionaries import RECIPES, train_dictionaries

        unknown = set(arguments.names or []) - {r.name for r in RECIPES}
        if unknown:
            raise SaevalError(f"no SAE recipe called {', '.join(sorted(unknown))}")
        if not (arguments.out / "model" / "config.json").exists():
            raise SaevalError(f"{arguments.out / 'model'}: no model here; run without --only first")
        train_dictionaries(arguments.out, arguments.names)
    return 0
