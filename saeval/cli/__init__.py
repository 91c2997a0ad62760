"""The command line: `saeval run | check | ls | ...`."""

from saeval.cli.grammar import KINDS, VERBS, main

__all__ = ["KINDS", "VERBS", "main"]
