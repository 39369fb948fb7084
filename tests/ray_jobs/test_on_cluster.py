"""Builds and inference on three nodes of Ray, which lose workers and a node meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_models
from helpers.predictors import ReferencePredictor, images
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Plan, ProfileSpec
from trt_native.builder.isolated import build_isolated
from trt_native.errors import SpecError, TrtNativeError
from trt_native.ray import BuildStore, Predictor, build_all, predict, read_matrix, worker

pytestmark = [pytest.mark.slow, pytest.mark.backend]

SHAPES = "{batch: 1, height: 16, width: 16}"


def write_matrix(folder, models, text):
    for name in models:
        tiny_models.conv(folder / f"{name}.onnx", operator=name)
    path = folder / "matrix.yaml"
    path.write_text(
        f"store: store\nmodels: [{', '.join(f'{name}.onnx' for name in models)}]\n" + text
    )
    return path


def workers_at(cluster, function):
    """Processes of the cluster's workers that call a function."""
    raylets = {
        process.process.pid
        for node in cluster.list_all_nodes()
        for process in node.all_processes.get("raylet", ())
    }
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            named = f"ray::{function}".encode() in (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if named and parent in raylets:
                yield int(entry.name)


def first_worker_at(cluster, function, done, but=()):
    """Wait for a worker that calls a function, until all is done."""
    while not done.wait(0.02):
        for pid in workers_at(cluster, function):
            if pid not in but:
                return pid
    raise AssertionError("everything was done before something could be killed")


def test_every_plan_is_there_once_and_whole(cluster, tmp_path):
    path = write_matrix(
        tmp_path,
        ("Relu", "Tanh"),
        f"""
precisions:
  - fp16
  - name: measured
    precision: fp16
    quantization: {{calibration_data: calib, calibration_runner: reference}}
profiles: {{small: {{dims: {SHAPES}}}}}
targets: [{{name: any, backend: rtx, memory: 100MB, timeout: 5m}}]
""",
    )
    (tmp_path / "calib").mkdir()
    for i in range(2):
        sample = np.random.default_rng(i).standard_normal((1, 3, 16, 16), np.float32)
        np.savez(tmp_path / f"calib/{i}.npz", x=sample)
    matrix = read_matrix(path)
    removed = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")

    done = threading.Event()

    def interfere():
        first = first_worker_at(cluster, "build_on_node", done)
        os.kill(first, signal.SIGKILL)
        first_worker_at(cluster, "build_on_node", done, but=(first,))
        cluster.remove_node(removed, allow_graceful=False)

    thread = threading.Thread(target=interfere)
    thread.start()
    report = build_all(matrix)
    done.set()
    thread.join()

    assert [row.failure for row in report.rows if row.failure] == []
    assert report.counts == {"built": 4, "cached": 0, "failed": 0}
    assert sum(row.starts for row in report.rows) > 4
    entries = BuildStore(tmp_path / "store").entries()
    assert len(entries) == 4
    plans = sorted((tmp_path / "store/plans").rglob("*.*"))
    expected = [tmp_path / "store" / entry.plan for entry in entries.values()]
    assert plans == sorted([*expected, *(Path(f"{plan}.json") for plan in expected)])
    for row in report.rows:
        plan = Plan.load(row.path)
        assert plan.manifest.gpu is None
        assert plan.manifest.precision["requested"] == "fp16"
        local = build_isolated(row.build.file, row.build.config, backend="rtx")
        assert bytes(plan.data) == bytes(local.data)

    second = build_all(matrix)
    assert second.counts == {"built": 0, "cached": 4, "failed": 0}
    assert [row.plan for row in second.rows] == [row.plan for row in report.rows]

    tiny_models.conv(tmp_path / "Tanh.onnx", operator="Softplus")
    (third,) = (row for row in build_all(one_of(matrix, "Tanh", "fp16")).rows)
    assert third.state == "built"


def one_of(matrix, model, precision):
    builds = (b for b in matrix.builds if (b.model, b.precision) == (model, precision))
    return dataclasses.replace(matrix, builds=tuple(builds))


def test_failures_are_reported_and_the_rest_is_built(cluster, tmp_path):
    path = write_matrix(
        tmp_path,
        ("Relu",),
        f"""
profiles: {{small: {{dims: {SHAPES}}}, wrong: {{dims: {{batch: 1}}}}}}
precisions: [fp32, {{name: again, precision: fp32}}]
targets:
  - {{name: here, backend: rtx, labels: {{kind: b}}}}
  - {{name: gone, backend: rtx, labels: {{kind: c}}}}
  - {{name: large, backend: rtx, memory: 100TiB, options: {{optimization_level: 1}}}}
  - {{name: hasty, backend: rtx, timeout: 0.01s, options: {{optimization_level: 2}}}}
  - {{name: gpu, backend: rtx, gpu: H100, warm: true}}
""",
    )
    report = build_all(read_matrix(path), store=str(tmp_path / "other"))
    rows = {(r.build.profile, r.build.precision, r.build.target.name): r for r in report.rows}
    built = rows["small", "fp32", "here"]
    assert report.counts == {"built": 2, "cached": 0, "failed": 18}
    assert rows["small", "again", "here"].plan == built.plan  # the same build, done once
    assert list(BuildStore(tmp_path / "other").entries().values()) == [built.plan]
    messages = {
        "gone": "target gone: no node of the cluster has CPU 1, label kind=c; add one",
        "large": "no node of the cluster has CPU 1, memory 1.09951e+14; add one",
        "hasty": "the build took too long and was stopped",
        "gpu": "target gpu: no node of the cluster has CPU 1, GPU 1, a GPU of kind H100; add one",
    }
    for target, message in messages.items():
        assert message in rows["small", "fp32", target].failure.message
    wrong = rows["wrong", "fp32", "here"].failure
    assert wrong.kind == "SpecError"
    assert wrong.message.endswith(": the requested shapes do not fit the model:")
    assert "dimension 'height' has no range" in "\n".join(wrong.problems)
    states = [one["state"] for one in report.to_json()["builds"]]
    assert [states.count(state) for state in ("built", "failed")] == [2, 18]


def test_a_store_that_the_nodes_do_not_see(cluster, tmp_path):
    path = write_matrix(tmp_path, ("Relu",), "targets: [{name: x, backend: rtx}]")
    # Each process has a memory of its own.
    (row,) = build_all(read_matrix(path), store=f"memory://{tmp_path.name}").rows
    assert row.state == "failed"
    assert "does not see the store memory://" in row.failure.message


def test_a_build_that_always_dies_is_given_up(cluster, tmp_path):
    path = write_matrix(tmp_path, ("Relu",), f"profiles: {{small: {{dims: {SHAPES}}}}}")
    done = threading.Event()

    def kill():
        while not done.is_set():
            for pid in workers_at(cluster, "build_on_node"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        (row,) = build_all(read_matrix(path), restarts=0).rows
    finally:
        done.set()
        thread.join()
    assert (row.state, row.starts) == ("failed", 1)
    assert "its worker or node was lost 1 time," in row.failure.message


def test_a_worker_does_not_import_torch(cluster, tmp_path):
    import ray

    BuildStore(tmp_path / "store").open()

    def modules(store):
        found = worker.describe_node("rtx", store, False)
        return found["facts"].backend, sorted({"torch", "pandas"} & set(sys.modules))

    remote = ray.remote(max_calls=1)(modules)
    assert ray.get(remote.remote(str(tmp_path / "store"))) == ("rtx", [])


class TestCommand:
    """``trt-native build-all``, on the cluster that this process is connected to."""

    def test_table_report_and_exit_code(self, cluster, tmp_path, main_in_process):
        path = write_matrix(
            tmp_path,
            ("Relu",),
            f"""
profiles: {{small: {{dims: {SHAPES}}}, wrong: {{dims: {{batch: 1}}}}, odd: {{dims: {{batch: 2}}}}}}
precisions: [fp32]
targets: [{{name: any, backend: rtx}}, {{name: gone, backend: rtx, labels: {{kind: c}}}}]
""",
        )
        report = tmp_path / "report.json"
        code, printed, errors = main_in_process("build-all", path, "--report", report)
        assert code == 1
        assert re.search(
            r"Relu +│ fp32 +│ small +│ any +│ built +│ [\d.]+ s +│ [\d.]+ KiB", printed
        )
        assert re.search(r"Relu +│ fp32 +│ small +│ gone +│ failed", printed)
        assert "6 builds: 1 built, 0 cached, 5 failed; " in printed
        assert "error: Relu, fp32, wrong, any (and 1 other): " in errors
        assert "  - dimension 'height' has no range" in errors
        gone = (
            "(and 2 others): target gone: no node of the cluster has CPU 1, label kind=c; add one"
        )
        assert gone in errors
        written = json.loads(report.read_text())
        assert written["counts"] == {"built": 1, "cached": 0, "failed": 5}
        assert (
            Plan.load(written["builds"][0]["path"]).sha256 == written["builds"][0]["plan"]["sha256"]
        )

        text = path.read_text().replace(", odd: {dims: {batch: 2}}", "")
        text = text.replace(", wrong: {dims: {batch: 1}}", "")
        path.write_text(text.replace(", {name: gone, backend: rtx, labels: {kind: c}}", ""))
        code, printed, _ = main_in_process("build-all", path, "--json")
        assert code == 0
        (row,) = json.loads(printed)["builds"]
        assert (row["state"], row["path"]) == ("cached", written["builds"][0]["path"])

    def test_a_matrix_that_cannot_be_used(self, tmp_path, main_in_process):
        (tmp_path / "matrix.yaml").write_text("stor: x\nmodels: [none.onnx]\n")
        code, printed, errors = main_in_process("build-all", tmp_path / "matrix.yaml", "--json")
        assert code == 1
        assert (
            "matrix.yaml: the matrix cannot be used:\n  - the matrix: unknown key 'stor'" in errors
        )
        assert json.loads(printed)["error"]["kind"] == "SpecError"

    def test_without_a_store(self, tmp_path, main_in_process):
        path = write_matrix(tmp_path, ("Relu",), "")
        path.write_text(path.read_text().replace("store: store\n", ""))
        code, _, errors = main_in_process("build-all", path)
        assert (code, errors.splitlines()[-1]) == (
            1,
            "error: no store: name a folder or a URL for the plans (--store)",
        )

    def test_without_a_cluster(self, tmp_path):
        path = write_matrix(tmp_path, ("Relu",), "")
        words = [sys.executable, "-m", "trt_native", "build-all", path, "--address", "127.0.0.1:1"]
        done = subprocess.run(
            words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            "error: no Ray at '127.0.0.1:1': Connection refused; start one with `ray start`"
            " (--address)"
        )

    def test_another_address_than_that_of_the_process(self, cluster, tmp_path, main_in_process):
        path = write_matrix(tmp_path, ("Relu",), "")
        code, _, errors = main_in_process("build-all", path, "--address", "127.0.0.1:1")
        assert code == 1
        assert "this process is connected to a Ray already: give no address" in errors

    def test_without_ray(self, tmp_path, main_in_process, monkeypatch):
        path = write_matrix(tmp_path, ("Relu",), "")
        monkeypatch.setitem(sys.modules, "ray", None)
        code, _, errors = main_in_process("build-all", path)
        assert code == 1
        assert "install the extra trt-native[ray]: pip install 'ray[data]" in errors
        assert errors.count("error:") == 1


# Inference


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    model = tiny_models.conv(tmp_path_factory.mktemp("predictor") / "net.onnx")
    shapes = {"batch": "1:4:8", "height": "8", "width": "8"}
    config = BuildConfig(profiles=ProfileSpec(dims=shapes), precision="fp32")
    path = model.with_suffix(".plan")
    build_isolated(model, config, backend="rtx").save(path)
    return path


def test_no_row_is_lost_and_none_comes_twice(cluster, plan):
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    dataset = ray.data.range(400).map_batches(images, batch_size=50)
    found = dataset.map_batches(
        ReferencePredictor,
        fn_constructor_args=(str(plan),),
        fn_constructor_kwargs={"dies_at": 123, "outputs": {"y": "scores"}},
        compute=ray.data.ActorPoolStrategy(size=2, max_concurrent_calls_per_actor=2),
        batch_size=30,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=0,
    ).take_all()
    assert Path(f"{plan}.died").exists()
    assert sorted(row["id"] for row in found) == list(range(400))
    evaluator = ReferenceEvaluator(str(plan.with_suffix(".onnx")))
    for row in found[::17]:
        x = images({"id": [row["id"]]})["x"]
        np.testing.assert_array_equal(row["x"], x[0])
        np.testing.assert_allclose(row["scores"], evaluator.run(None, {"x": x})[0][0], rtol=1e-5)


def test_columns_are_used_where_they_are(cluster, plan):
    import pyarrow
    from ray.data.extensions import ArrowTensorArray

    from trt_native.ray.predictor import _arrays

    x = np.arange(48, dtype=np.float32).reshape(8, 2, 3)
    values = pyarrow.array(x.reshape(-1))
    lists = pyarrow.FixedSizeListArray.from_arrays(values, 6)
    table = pyarrow.table(
        {
            "tensors": ArrowTensorArray.from_numpy(x),
            "arrow": pyarrow.FixedShapeTensorArray.from_numpy_ndarray(x),
            "lists": lists,
            "numbers": pyarrow.array(x[:, 0, 0].copy()),
        }
    ).slice(2, 4)
    found = _arrays(table)
    for name in ("tensors", "arrow"):
        np.testing.assert_array_equal(found[name], x[2:6])
        assert np.shares_memory(found[name], x)
    np.testing.assert_array_equal(found["lists"], x[2:6].reshape(4, 6))
    assert np.shares_memory(found["lists"], values.to_numpy())
    np.testing.assert_array_equal(found["numbers"], x[2:6, 0, 0])
    buffer = np.frombuffer(table.column("numbers").chunk(0).buffers()[1], np.float32)
    assert np.shares_memory(found["numbers"], buffer)

    predictor = ReferencePredictor(plan, columns={"x": "image"}, keep=["id"])
    batch = images({"id": np.arange(5)})
    table = pyarrow.table({"id": batch["id"], "image": ArrowTensorArray.from_numpy(batch["x"])})
    (y,) = predictor(table)
    assert y.column_names == ["id", "y"]
    (as_arrays,) = predictor({"id": batch["id"], "image": batch["x"]})
    np.testing.assert_array_equal(_arrays(y)["y"], as_arrays["y"])
    assert [found.num_rows for found in predictor(table.slice(0, 0))] == [0]


def test_batches_that_do_not_fit(cluster, plan):
    x = np.zeros((2, 3, 8, 8), np.float32)
    with pytest.raises(SpecError, match="no column 'x' for the plan's inputs x; it has image"):
        next(ReferencePredictor(plan)({"image": x}))
    with pytest.raises(SpecError, match="has a column 'y' already"):
        next(ReferencePredictor(plan)({"x": x, "y": x}))
    with pytest.raises(SpecError, match="no column 'id' to keep"):
        next(ReferencePredictor(plan, keep=["id"])({"x": x}))
    with pytest.raises(SpecError, match="the plan has no output 'z'; it has y"):
        ReferencePredictor(plan, outputs={"z": "z"})
    with pytest.raises(SpecError, match="the plan has no input 'z'; it has x"):
        ReferencePredictor(plan, columns={"z": "z"})
    halves = next(ReferencePredictor(plan, cast=True)({"x": x.astype(np.float16)}))
    np.testing.assert_array_equal(halves["y"], next(ReferencePredictor(plan)({"x": x}))["y"])


def test_outputs_that_arrow_cannot_hold(cluster, tmp_path):
    model = tiny_models.lone_conv(tmp_path / "net.onnx", shape=(1, 3, 8, 8))
    plan = tmp_path / "net.plan"
    build_isolated(model, backend="rtx").save(plan)
    text = Path(f"{plan}.json").read_text()
    Path(f"{plan}.json").write_text(text.replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    with pytest.raises(SpecError, match="output 'y' is bfloat16, which Arrow has no type for"):
        ReferencePredictor(plan)


def test_a_plan_that_is_not_there(cluster, tmp_path):
    for plan in (tmp_path / "none.plan", f"local://{tmp_path}/none.plan", "s4://x/none.plan"):
        with pytest.raises(TrtNativeError, match=r"none\.plan"):
            Predictor(plan)


def test_numbers_below_one(cluster):
    with pytest.raises(SpecError, match="gpus=0: must be at least 1"):
        predict(None, "x.plan", gpus=0)
