"""Builds and inference on a Ray cluster; needs the extra ``ray``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_native._lazy import lazy_exports

if TYPE_CHECKING:
    from trt_native.ray.build_farm import BuildFailure as BuildFailure
    from trt_native.ray.build_farm import BuildRow as BuildRow
    from trt_native.ray.build_farm import FarmReport as FarmReport
    from trt_native.ray.build_farm import build_all as build_all
    from trt_native.ray.matrix import Matrix as Matrix
    from trt_native.ray.matrix import MatrixBuild as MatrixBuild
    from trt_native.ray.matrix import Target as Target
    from trt_native.ray.matrix import read_matrix as read_matrix
    from trt_native.ray.predictor import Predictor as Predictor
    from trt_native.ray.predictor import predict as predict
    from trt_native.ray.store import BuildStore as BuildStore
    from trt_native.ray.store import StoredPlan as StoredPlan

_LAZY_EXPORTS = {
    "BuildFailure": "build_farm",
    "BuildRow": "build_farm",
    "BuildStore": "store",
    "FarmReport": "build_farm",
    "Matrix": "matrix",
    "MatrixBuild": "matrix",
    "Predictor": "predictor",
    "StoredPlan": "store",
    "Target": "matrix",
    "build_all": "build_farm",
    "predict": "predictor",
    "read_matrix": "matrix",
}

__all__ = list(_LAZY_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _LAZY_EXPORTS)
