"""The plot of margin explained against the number of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saeval.plugin import figure, png, wrapped


def explained_plot(values: Mapping[str, Any], title: str) -> bytes:
    """Cumulative explained margin, in attribution and in true ablation, against random groups and length: a PNG."""
    drawn = figure(9.5, 4.6)
    axes = drawn.add_subplot()
    for suffix, style, mark, what in (("", "-", "o", "top features"), ("_kept", "--", "s", "without flagged ones")):
        x, y, reach = _points(values[f"cumulative{suffix}"])
        axes.fill_between(x, y - reach[0], y + reach[1], color="tab:blue", alpha=0.15, linewidth=0)
        axes.plot(x, y, color="tab:blue", linestyle=style, label=f"{what}, attributed")
        x, y, reach = _points(values[f"ablated{suffix}"])
        fill = "tab:red" if mark == "o" else "white"
        shift = 0.985 if suffix else 1.015  # so that the two do not cover each other
        axes.errorbar(x * shift, y, reach, fmt=mark, color="tab:red", mfc=fill, capsize=3, label=f"{what}, ablated")
    for kind, colour, shift in (("attributed", "tab:blue", 0.94), ("ablated", "tab:red", 1.065)):
        low, high = (values.get(f"{kind}_random_{end}") for end in ("low", "high"))
        if low and high:
            places, ends = np.array(low["x"]) * shift, (np.array(low["y"]), np.array(high["y"]))
            label = f"matched random groups, {kind} (95%)"
            axes.vlines(places, *ends, color=colour, alpha=0.5, linewidth=5, label=label)
    for name, style, label in (("margin", "-", "whole margin"), ("length_explained", ":", "explained by length")):
        value = values[name]["value"]
        if value is not None:
            axes.axhline(value, color="black" if name == "margin" else "tab:green", linestyle=style, label=label)
    axes.set_xscale("log")
    sizes = values["ablated"]["x"]
    axes.set_xticks(sizes, [str(int(k)) for k in sizes])
    axes.minorticks_off()
    axes.set_xlabel("features, chosen on the other half of the pairs")
    axes.set_ylabel("mean margin explained (reward)")
    axes.set_title(wrapped(title, 6.0, 11), fontsize=11)
    axes.axhline(0, color="grey", linewidth=0.6)
    drawn.legend(fontsize=8, loc="outside right upper")
    return png(drawn)


def _points(curve: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and how far the 95% intervals of a curve reach below and above y, `[2, n]`."""
    y = np.array(curve["y"], dtype=float)
    known = curve.get("ci95") or [None] * len(y)
    low, high = np.array([ends or (at, at) for ends, at in zip(known, y, strict=True)], dtype=float).reshape(-1, 2).T
    return np.array(curve["x"]), y, np.stack([y - low, high - y])
