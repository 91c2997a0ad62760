"""Figures for `Report.pages`, without a window and without matplotlib's global state."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from saeval.escapes import plot

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_EM = 0.6
"""Mean width of a letter in ems, from above."""


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure  # late: slow to import, and only pages with plots need it

    return Figure(figsize=(width, height), layout="constrained")


_TITLE: ContextVar[str] = ContextVar("title", default="")


@contextmanager
def under_heading(text: str) -> Iterator[None]:
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
        drawn.suptitle(f"{plot(title)}\n{own}".strip(), fontsize=9, wrap=True)
    FigureCanvasAgg(drawn)
    held = io.BytesIO()
    drawn.savefig(held, format="png", dpi=130, metadata={"Software": None})
    return held.getvalue()


def wrapped(text: str, inches: float, size: float) -> str:
    """A title in as many lines as fit the width at this font size, in points; nothing in it is a formula."""
    return textwrap.fill(plot(text), max(int(inches * 72 / (size * _EM)), 8))


def titled(drawn: Figure, text: str, size: float = 10) -> None:
    """Give a figure its title, in as many lines as its width takes."""
    drawn.suptitle(wrapped(text, float(drawn.get_figwidth()), size), fontsize=size)


def label_log(axis: Axis) -> None:
    """Label a logarithmic axis as densely as its limits ask: call it last, since it keeps the limits of that moment.

    Within one decade the ticks are round numbers between its ends; within three 1, 2 and 5 times the powers of ten;
    beyond them the powers of ten alone.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter  # late: as above

    low, high = sorted(map(float, axis.get_view_interval()))
    if high >= 1000 * low:
        return
    if high >= 10 * low:
        ticks = LogLocator(subs=(1, 2, 5)).tick_values(low, high)
    else:
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    inside = [float(tick) for tick in ticks if low <= tick <= high]
    if len(inside) < 2:  # a very narrow axis: its ends say most
        inside = [low, high]
    axis.set_ticks(inside)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.set_minor_formatter(NullFormatter())
