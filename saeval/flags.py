"""Options that several verbs of the command line share."""

from __future__ import annotations

import argparse


def suite_options(parser: argparse.ArgumentParser) -> None:
    """Suites, and what changes a run of them."""
    parser.add_argument("suites", nargs="+", metavar="SUITE", help="a YAML file, or the name of a registered suite")
    parser.add_argument(
        "--limit", type=count, metavar="N", help="only the first N sequences; stays out of leaderboards"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, as data.sequences=64"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="SAE",
        help="use this SAE (or glob) whatever the preflight finds",
    )
    model_options(parser)
    parser.add_argument(
        "--batch-size", type=count_or_auto, metavar="N", help="sequences a batch, or auto (default: the suite's, or 16)"
    )


def model_options(parser: argparse.ArgumentParser) -> None:
    """Where and how precisely a model and its SAEs compute."""
    parser.add_argument("--device", default="cpu", help="torch device, or auto: cuda, mps or cpu (default: cpu)")
    parser.add_argument("--dtype", help="dtype of the model, such as bfloat16 or bf16")
    parser.add_argument("--sae-device", metavar="DEVICE", help="device of the SAEs, if not the model's")
    parser.add_argument("--sae-dtype", default="float32", metavar="DTYPE", help="dtype of the SAEs (default: float32)")
    parser.add_argument("--offline", action="store_true", help="use only what was downloaded before (`saeval fetch`)")
    plugin_option(parser)


def plugin_option(parser: argparse.ArgumentParser) -> None:
    """`--plugin FILE`."""
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="also load this plugin file")


def count(text: str) -> int:
    """A positive number."""
    if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got '{text[:40]}'")
    return int(text)


def count_or_auto(text: str) -> int | str:
    """A positive number, or `auto`."""
    return text if text == "auto" else count(text)
