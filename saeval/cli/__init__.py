"""The command line: `saeval run`, `saeval check`, `saeval ls`, ..."""

from saeval.cli.grammar import VERBS, main

__all__ = ["VERBS", "main"]
