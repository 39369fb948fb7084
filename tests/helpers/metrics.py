"""How far arrays are from what they should be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["relative_error"]


def relative_error(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """The relative L2 error, computed in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
