"""Predictors that die once, or need no GPU."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator

from trt_native.plans.manifest import read_manifest
from trt_native.ray import Predictor


def images(batch):
    """Rows with an image each, which its ``id`` is the seed of."""
    generators = (np.random.default_rng(int(i)) for i in batch["id"])
    x = [generator.standard_normal((3, 8, 8), np.float32) for generator in generators]
    return {**batch, "x": np.stack(x)}


class ReferenceSession:
    """What a Predictor uses of a Session; the ONNX file is next to the plan."""

    def __init__(self, plan):
        tensors = read_manifest(plan).tensors
        self.inputs = tuple(t for t in tensors if t.mode == "input")
        self.outputs = tuple(t for t in tensors if t.mode == "output")
        self._evaluator = ReferenceEvaluator(str(Path(plan).with_suffix(".onnx")))

    def _run(self, inputs):
        for tensor in self.inputs:
            array = inputs[tensor.name]
            assert array.dtype == tensor.dtype
            ranges = tensor.profiles
            allowed = (r.min[0] <= len(array) <= r.max[0] for r in ranges)
            assert any(allowed) if ranges else array.shape == tensor.shape
        names = [tensor.name for tensor in self.outputs]
        return dict(zip(names, self._evaluator.run(names, inputs), strict=True))

    def submit(self, inputs):
        return ReferenceRun(self._run(inputs))


class ReferenceRun:
    """What a Predictor uses of an InferenceFuture."""

    def __init__(self, outputs):
        self.result = lambda: outputs


class DyingPredictor(Predictor):
    """It ends its process at the first batch with a row whose ``id`` is ``dies_at``, once."""

    def __init__(self, plan, *, dies_at=None, **options):
        super().__init__(plan, **options)
        self._dies_at = dies_at
        self._died = Path(f"{plan}.died")

    def __call__(self, batch):
        if self._dies_at is not None and self._dies_at in np.asarray(batch["id"]):
            with contextlib.suppress(FileExistsError):
                self._died.touch(exist_ok=False)
                os._exit(1)
        return super().__call__(batch)


class ReferencePredictor(DyingPredictor):
    """Its plan is real, and its outputs are those of onnx.reference."""

    def _opened(self, plan, options):
        return ReferenceSession(plan)
