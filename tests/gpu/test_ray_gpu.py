"""Inference on the rows of a Ray Dataset, against a session, with an actor that dies."""

from __future__ import annotations

import os

import numpy as np
import pytest
from helpers import ROOT, tiny_models
from helpers.predictors import DyingPredictor, images

from trt_native import BuildConfig, Precision, ProfileSpec, Session, build_plan
from trt_native.errors import SpecError
from trt_native.ray import Predictor, predict

pytestmark = [pytest.mark.gpu, pytest.mark.backend]
ROWS = 10_000


@pytest.fixture(scope="module")
def data():
    """``ray.data`` with a Ray on this machine alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
        ray = pytest.importorskip("ray")
        pytest.importorskip("ray.data")
        ray.init(
            address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray.data
        ray.shutdown()


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tiny_models.conv(tmp_path_factory.mktemp("ray") / "net.onnx")
    profile = ProfileSpec(dims={"batch": "1:32:64", "height": "8", "width": "8"})
    target = path.with_suffix(".plan")
    build_plan(path, BuildConfig(profiles=profile, precision=Precision.FP32)).save(target)
    return target


@pytest.fixture(scope="module")
def expected(plan):
    """The outputs of a session, by the id of the row."""
    x = images({"id": np.arange(ROWS)})["x"]
    with Session(plan) as session:
        return np.concatenate([session.run({"x": x[i : i + 50]})["y"] for i in range(0, ROWS, 50)])


def check_rows(rows, expected):
    assert sorted(row["id"] for row in rows) == list(range(len(expected)))
    for row in rows:
        np.testing.assert_allclose(row["y"], expected[row["id"]], rtol=1e-4, atol=1e-4)


def test_every_row_has_its_result(data, plan, expected):
    dataset = data.range(ROWS).map_batches(images, batch_size=256)
    check_rows(predict(dataset, plan, keep=["id"]).take_all(), expected)


def test_an_actor_that_dies(data, plan, expected):
    dataset = data.range(ROWS).map_batches(images, batch_size=256)
    found = dataset.map_batches(
        DyingPredictor,
        fn_constructor_args=(str(plan),),
        fn_constructor_kwargs={"keep": ["id"], "dies_at": 4321},
        compute=data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2),
        batch_size=100,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_gpus=1,
    )
    check_rows(found.take_all(), expected)
    assert plan.with_name(f"{plan.name}.died").exists()


def test_a_plan_with_a_url(data, plan, expected):
    predictor = Predictor(f"local://{plan}")
    batch = images({"id": np.arange(150)})
    (found,) = predictor(batch)
    np.testing.assert_array_equal(found["id"], batch["id"])
    np.testing.assert_allclose(found["y"], expected[:150], rtol=1e-4, atol=1e-4)


def test_another_type_is_refused_or_converted(data, plan, expected):
    batch = images({"id": np.arange(5)})
    halves = {**batch, "x": batch["x"].astype(np.float16)}
    with pytest.raises(SpecError, match="float16"):
        next(Predictor(plan)(halves))
    found = next(Predictor(plan, cast=True)(halves))["y"]
    np.testing.assert_allclose(found, expected[:5], rtol=0.02, atol=0.05)
