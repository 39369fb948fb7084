"""Distance of results from what was expected, for the scripts that judge plans."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["difference"]


def difference(
    found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], *, floor: float = 0.0
) -> float:
    """The relative L2 error; infinite where shapes, infinities or NaNs differ.

    Args:
        found: A result.
        expected: What it should be.
        floor: The least root mean square that ``expected`` counts as having.
    """
    if found.shape != expected.shape:
        return float("inf")
    f, e = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(e)
    if (
        not np.array_equal(f[~finite], e[~finite], equal_nan=True)
        or not np.isfinite(f[finite]).all()
    ):
        return float("inf")
    norm = max(float(np.linalg.norm(e[finite])), floor * max(1, e.size) ** 0.5)
    return float(np.linalg.norm(f[finite] - e[finite])) / (norm or 1.0)
