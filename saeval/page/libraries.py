"""DataTables as the page carries it, from the installed package itables."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from saeval.base.errors import SaevalError

_EXPORTS = re.compile(r"\bexport\s*\{([^{}]*)\}\s*;?")


@cache
def datatables() -> str:
    """Return DataTables as the text of a module script, which sets `globalThis.DataTable`.

    The bundle of itables exports its names, and a script inside a page cannot be imported: so its one export becomes
    an assignment. Raises `SaevalError` if the installed version is packed in another way.
    """
    spec = find_spec("itables")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    file = next((path for folder in folders if (path := Path(folder) / "html" / "dt_bundle.js").exists()), None)
    text = file.read_text(encoding="utf-8") if file is not None else ""
    exports = list(_EXPORTS.finditer(text))
    names = dict(_named(part) for part in exports[0][1].split(",")) if len(exports) == 1 else {}
    if "default" not in names:
        raise SaevalError("pages: itables has no bundle of DataTables that saeval can read; install itables 2.9")
    (export,) = exports
    return f"{text[: export.start()]}globalThis.DataTable={names['default']};{text[export.end() :]}"


def _named(export: str) -> tuple[str, str]:
    """Return the public and the own name of `own as public`."""
    own, _, public = export.partition(" as ")
    return public.strip(), own.strip()
