"""Files of a results folder, edited."""

from __future__ import annotations

import numpy as np


def changed(file):
    """Another sum in a file that numpy reads without complaint."""
    with np.load(file, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    name = next(name for name, array in kept.items() if array.dtype.kind == "f" and array.size > 1)
    kept[name] = kept[name] + 1
    np.savez(file, **kept)
