"""Products of quantized values on the GPU, against the reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.quantized_products import CONVOLUTIONS, PRODUCTS, convolution_of, product, run

from trt_native import BuildConfig, Session, build_plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend]
CASES = {name: (product, *case) for name, case in PRODUCTS.items()}
CASES |= {f"convolution, {name}": (convolution_of, *case) for name, case in CONVOLUTIONS.items()}


@pytest.mark.parametrize("name", CASES)
def test_values(tmp_path, rng, name):
    make, kind, text, _ = CASES[name]
    proto, x = make(rng, kind, text)
    (expected,) = run(proto, {"x": x})
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    with Session(build_plan(path, BuildConfig())) as session:
        found = session.run({"x": x})["y"]
    largest = np.abs(expected.astype(np.float64)).max()
    error = np.abs(found.astype(np.float64) - expected).max()
    steps = 9.01 if "linear" in name else 0  # a sum may be rounded either way
    assert error <= max(largest * 1e-2, steps)
