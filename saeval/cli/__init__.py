"""The command line: `saeval run | check | ls | ...`."""

from saeval.cli.grammar import VERBS, main

__all__ = ["VERBS", "main"]
