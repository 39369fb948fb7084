from __future__ import annotations

import numpy as np
import pytest

from trt_native.cuda import gpu_info
from trt_native.errors import CudaError, SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime import check_inputs
from trt_native.runtime.execution import _signature
from trt_native.runtime.input_checks import (
    check_outputs,
    check_views,
    choose_profile,
    host_values,
    native_order,
)
from trt_native.runtime.tensor_views import TensorView, read
from trt_native.shapes import ShapeRange


def ranges(*texts):
    return tuple(ShapeRange.parse(text) for text in texts)


X = PlanTensor("x", "input", "float16", (-1, 3), (), ranges("1x3:2x3:4x3", "8x3:8x3:16x3"))
Z = PlanTensor("z", "input", "float32", (-1,), (), ranges("1:2:4", "1:2:4"))
T = PlanTensor("t", "input", "int64", (1,))


def arrays(batch=2, length=2):
    return {
        "x": np.zeros((batch, 3), np.float16),
        "z": np.zeros(length, np.float32),
        "t": np.zeros(1, np.int64),
    }


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (4, 0), (8, 1), (16, 1)])
def test_the_first_profile_that_allows_all_shapes(batch, profile):
    assert check_inputs((X, Z, T), 2, arrays(batch)) == profile


def test_all_faults_come_in_one_error():
    inputs = {"x": np.zeros((5, 3), np.float32), "t": np.zeros(2, np.int64), "q": np.zeros(1)}
    with pytest.raises(SpecError) as caught:
        check_inputs((X, Z, T), 2, inputs)
    text = str(caught.value)
    for part in (
        "'q' is not an input",
        "'z' is missing",
        "'x' needs float16, found float32",
        "'x' cannot have the shape 5x3",
        "'t' cannot have the shape 2",
        "x: float16 1x3:2x3:4x3 or 8x3:8x3:16x3",
        "t: int64 1",
    ):
        assert part in text


def test_shapes_that_only_different_profiles_allow():
    x = PlanTensor("x", "input", "float32", (-1,), (), ranges("1:1:1", "2:2:2"))
    z = PlanTensor("z", "input", "float32", (-1,), (), ranges("5:5:5", "6:6:6"))
    inputs = {"x": np.zeros(1, np.float32), "z": np.zeros(6, np.float32)}
    with pytest.raises(SpecError, match="no single profile allows these shapes together"):
        check_inputs((x, z), 2, inputs)


def test_bfloat16_arrays_fit_bfloat16_inputs():
    import ml_dtypes

    tensor = PlanTensor("x", "input", "bfloat16", (2,))
    assert check_inputs((tensor,), 1, {"x": np.zeros(2, ml_dtypes.bfloat16)}) == 0


@pytest.mark.skipif(gpu_info() is not None, reason="this machine has a GPU")
def test_without_a_gpu_the_error_says_so(tmp_path):
    from helpers import tiny_models

    from trt_native import Session, build_plan

    pytest.importorskip("tensorrt_rtx")
    plan = build_plan(tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8)), backend="rtx")
    with pytest.raises(CudaError, match="cannot find a GPU"):
        Session(plan)


def tensor(*profiles, name="x", shape=(-1, 3)):
    ranges = tuple(ShapeRange.parse(text) for text in profiles)
    return PlanTensor(name, "input", "float32", shape, (), ranges)


@pytest.mark.parametrize(("batch", "profile"), [(1, 1), (2, 1), (3, 2), (9, 0), (17, None)])
def test_the_tightest_profile_that_allows_the_shapes(batch, profile):
    x = tensor("1x3:8x3:16x3", "1x3:1x3:2x3", "1x3:2x3:4x3")
    fixed = PlanTensor("t", "input", "int64", (1,))
    assert choose_profile((x, fixed), 3, {"x": (batch, 3), "t": (1,)}) == profile


def test_of_two_profiles_up_to_the_same_size_the_narrower_is_the_tightest():
    x = tensor("1x3:2x3:2x3", "2x3:2x3:2x3")
    assert [choose_profile((x,), 2, {"x": (batch, 3)}) for batch in (1, 2)] == [0, 1]


def test_output_buffers_are_checked_all_at_once():
    outputs = (
        PlanTensor("y", "output", "float32", (-1,)),
        PlanTensor("n", "output", "int64", (2,)),
    )
    frozen = np.zeros(2, np.int64)
    frozen.flags.writeable = False
    given = {"y": np.zeros((4, 2), np.float64), "n": frozen, "q": np.zeros(1)}
    with pytest.raises(SpecError) as caught:
        check_outputs(outputs, {"y": (4,), "n": (2,)}, {k: read(v) for k, v in given.items()})
    for part in (
        "'q' is not an output",
        "'y' is float32, its buffer float64",
        "'y' has the shape 4, its buffer 4x2",
        "'n': its buffer is read-only",
    ):
        assert part in str(caught.value)
    with pytest.raises(SpecError, match=r"'y': its buffer is not contiguous"):
        check_outputs(outputs, {"y": (4,)}, {"y": read(np.zeros(8, np.float32)[::2])})
    with pytest.raises(SpecError, match="'y': its buffer is not in this machine's byte order"):
        check_outputs(outputs, {"y": (4,)}, {"y": read(np.zeros(4, ">f4"))})
    with pytest.raises(SpecError, match="its shape depends on data"):
        check_outputs(outputs, {"y": (-1,)}, {"y": read(np.zeros(4, np.float32))})


def test_values_that_are_read_on_the_host_are_in_its_byte_order():
    given = np.array([[1, 2], [3, 4]], ">i8")
    values = native_order(given.T)
    assert values.dtype.isnative
    assert values.flags.c_contiguous
    assert values.tolist() == [[1, 3], [2, 4]]
    found = [
        host_values({"n": read(np.array(n, dtype))}, frozenset("n"))
        for n, dtype in ((1, ">i8"), (1, "<i8"), (1 << 56, "<i8"))
    ]
    assert found[0] == found[1] != found[2]


def test_arrays_on_another_gpu_are_refused():
    x = PlanTensor("x", "input", "float32", (4,))
    y = PlanTensor("y", "output", "float32", (4,))

    def on(ordinal):
        return TensorView("torch", None, (4,), "float32", pointer=256, ordinal=ordinal)

    for ordinal in (0, None):  # None: an array that does not tell
        assert check_views((x,), 1, {"x": on(ordinal)}, frozenset(), ordinal=0) == 0
        check_outputs((y,), {"y": (4,)}, {"y": on(ordinal)}, 0)
    with pytest.raises(SpecError, match="'x' is on GPU 1, the engine on GPU 0: copy it there"):
        check_views((x,), 1, {"x": on(1)}, frozenset(), ordinal=0)
    with pytest.raises(SpecError, match="'y' is on GPU 0, the engine on GPU 1: copy it there"):
        check_outputs((y,), {"y": (4,)}, {"y": on(0)}, 1)
    assert _signature({"x": on(0)}, frozenset()) != _signature({"x": on(1)}, frozenset())
