"""The verbs that print what plugins supply: `ls`, `show` and `schema`. They need no engine, which is slow to import."""

from __future__ import annotations

import argparse
import json

from saeval.base.errors import OK
from saeval.base.escapes import line
from saeval.cli import listing
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry


def _registry(arguments: argparse.Namespace) -> Registry:
    return Registry(Plugins(arguments.plugin))


def ls(arguments: argparse.Namespace) -> int:
    rows = listing.listing(_registry(arguments), arguments.kind)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return OK
    names = [line(row["name"]) for row in rows]
    width = max(map(len, names), default=0)
    for name, row in zip(names, rows, strict=True):
        print(line(f"{name:<{width}}  {row['description']}  [{row['from']}]"))
    return OK


def show(arguments: argparse.Namespace) -> int:
    print(listing.show(arguments.what, lambda: _registry(arguments), arguments.out, arguments.json))
    return OK


def schema(arguments: argparse.Namespace) -> int:
    from saeval.cli.suite_schema import suite_schema  # late: pydantic's JSON Schema is slow to import

    print(json.dumps(suite_schema(_registry(arguments)), indent=1))
    return OK
