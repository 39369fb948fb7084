"""Operators that the parser refuses, with any batch and with indices at run time, on the GPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.metrics import relative_error
from helpers.operator_cases import (
    RESIZES,
    cases,
    reference,
    resize_model,
    with_batch,
)

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.errors import TrtNativeError
from trt_native.shapes import ProfileSpec

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


def computed(tmp_path, proto, inputs, profile=None):
    onnx.save(proto, tmp_path / "m.onnx")
    profiles = () if profile is None else (ProfileSpec.parse([profile]),)
    config = BuildConfig(precision=Precision.FP32, profiles=profiles)
    with Session(build_plan(tmp_path / "m.onnx", config)) as session:
        kinds = {tensor.name: tensor.dtype for tensor in session.engine.inputs}
        return session.run({name: inputs[name].astype(kind) for name, kind in kinds.items()})


@pytest.mark.parametrize(
    ("module", "count"),
    [
        ("col2im", 5),
        ("compress", 4),
        ("cumprod", 2),
        ("deformconv", 4),
        ("det", 1),
        ("dft", 10),
        ("maxpool", 19),
        ("resize", 35),
        ("roialign", 3),
        ("scatterelements", 7),
        ("scatternd", 7),
        ("tensorscatter", 3),
        ("tfidfvectorizer", 3),
    ],
)
def test_batches(tmp_path, module, count):
    """With one element more than in ONNX's own test, which scripts/onnx_nodes.py runs."""
    done = 0
    for case, given, _ in cases(module):
        proto, inputs = with_batch(module, case.model, given)
        most = len(inputs[proto.graph.input[0].name])
        try:
            found = computed(tmp_path, proto, inputs, f"n={most - 1}:{most}:{most}")
        except TrtNativeError:  # of extents that must be fixed
            continue
        for value, expected in zip(proto.graph.output, reference(proto, inputs), strict=True):
            assert relative_error(found[value.name], expected) < 1e-4, case.name
        done += 1
    assert done == count


@pytest.mark.parametrize("module", ["scatterelements", "scatternd"])
def test_indices_at_run_time(tmp_path, module):
    for case, inputs, expected in cases(module):
        found = computed(tmp_path, case.model, inputs)
        for value, want in zip(case.model.graph.output, expected, strict=True):
            np.testing.assert_allclose(found[value.name], want, 1e-5, err_msg=case.name)


@pytest.mark.parametrize("limits", [(0.6, 2.3), (0.8, 0.35), (4, 3), (9, 13), (10, 14)])
def test_resize_by_the_parser_or_written(tmp_path, limits):
    """All kinds in one plan: those that the parser takes must be right, too."""
    models = [resize_model(limits, options) for options in RESIZES]
    joined = onnx.ModelProto()
    joined.CopyFrom(models[0])
    for index, model in enumerate(models[1:], 1):
        node, output = joined.graph.node.add(), joined.graph.output.add()
        node.CopyFrom(model.graph.node[0])
        output.CopyFrom(model.graph.output[0])
        node.output[0] = output.name = f"y{index}"
        for axis, dim in enumerate(output.type.tensor_type.shape.dim):
            if axis > 1:
                dim.dim_param = f"{dim.dim_param}{index}"
    x = {"x": np.random.default_rng(0).standard_normal((3, 2, 5, 7)).astype(np.float32)}
    found = computed(tmp_path, joined, x, "n=1:3:3")
    wrong = [
        (options, error)
        for options, value, expected in zip(
            RESIZES, joined.graph.output, reference(joined, x), strict=True
        )
        if (error := relative_error(found[value.name], expected)) > 1e-5
    ]
    assert wrong == []
