"""Figures for `Report.pages`, without a window and without matplotlib's global state."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure  # late: slow to import, and only pages with plots need it

    return Figure(figsize=(width, height), layout="constrained")


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file; the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: as above

    FigureCanvasAgg(drawn)
    held = io.BytesIO()
    drawn.savefig(held, format="png", dpi=130, metadata={"Software": None})
    return held.getvalue()
