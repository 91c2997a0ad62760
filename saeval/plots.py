"""Figures for `Report.pages`, without a window and without matplotlib's global state."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure  # late: slow to import, and only pages with plots need it

    return Figure(figsize=(width, height), layout="constrained")


_TITLE: ContextVar[str] = ContextVar("title", default="")


@contextmanager
def titled(text: str) -> Iterator[None]:
    """Figures that `png` writes meanwhile have this line above them."""
    before = _TITLE.set(text)
    try:
        yield
    finally:
        _TITLE.reset(before)


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file; the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: as above

    if title := _TITLE.get():
        own = drawn.get_suptitle()
        drawn.suptitle(f"{title}\n{own}".strip(), fontsize=9, wrap=True)
    FigureCanvasAgg(drawn)
    held = io.BytesIO()
    drawn.savefig(held, format="png", dpi=130, metadata={"Software": None})
    return held.getvalue()
