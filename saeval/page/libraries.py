"""The scripts of installed packages that the page carries: DataTables from itables, Vega from vl-convert-python."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saeval.base.errors import SaevalError
from saeval.base.fingerprint import cached, digest_of

VEGA_LITE = "6.4"
"""The version of the grammar that charts are written in."""
_SNIPPET = "window.vegaEmbed = vegaEmbed;"
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


@cache
def vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as the text of a script, which sets `vegaEmbed`.

    Packing takes seconds, so its result is cached by the version of vl-convert-python.
    """

    def pack() -> dict[str, Any]:
        import vl_convert  # late: a library of 80 MB

        return {"text": vl_convert.javascript_bundle(_SNIPPET, VEGA_LITE)}

    text: str = cached("scripts", digest_of([_SNIPPET, VEGA_LITE, version("vl-convert-python")]), pack)["text"]
    return text


def inline(script: str) -> str:
    """Return a script as the content of a `<script>` element: only in its strings can the end of the element occur."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE).replace("\r\n", "\n").replace("\r", "\n")
