"""What targets ask Ray for, on nodes with GPUs, resources and labels of the tests' own making."""

from __future__ import annotations

import os

import pytest
from helpers import tiny_models

from trt_native import Plan
from trt_native.ray import build_all, read_matrix
from trt_native.ray.build_farm import _demands
from trt_native.ray.tasks import Tasks

pytestmark = [pytest.mark.slow, pytest.mark.backend]


@pytest.fixture(scope="module")
def node(cluster):
    """The id of a node that Ray takes to have an H100, with a label and two of a resource."""
    made = cluster.add_node(
        num_cpus=1,
        num_gpus=1,
        node_ip_address="127.0.0.1",
        object_store_memory=100 << 20,
        resources={"accelerator_type:H100": 1, "license": 2},
        labels={"tensorrt": "10"},
    )
    yield made.node_id
    cluster.remove_node(made)


def write_matrix(folder, targets):
    tiny_models.conv(folder / "Relu.onnx")
    path = folder / "matrix.yaml"
    path.write_text(
        "store: store\nmodels: [Relu.onnx]\nprecisions: [fp32]\n"
        "profiles: {s: {dims: {batch: 1, height: 16, width: 16}}}\n"
        "targets:\n" + "".join(f"  - {{{target}}}\n" for target in targets)
    )
    return read_matrix(path)


def test_builds_run_where_their_target_says(cluster, node, tmp_path):
    import ray

    matrix = write_matrix(
        tmp_path,
        [
            "name: kind, backend: rtx, gpu: H100",
            "name: any, backend: tensorrt, gpu: any",
            "name: labels, labels: {tensorrt: '10'}",
            "name: one_of, labels: {tensorrt: 'in(9, 10)'}",
            "name: resources, resources: {license: 2}",
            "name: part, resources: {license: 0.5}, memory: 1MiB",
            "name: all, gpu: H100, labels: {tensorrt: '10'}, resources: {license: 1}, warm: true",
            "name: another, labels: {tensorrt: '!10'}",
            "name: none_of, labels: {tensorrt: '!in(10, 11)'}",
        ],
    )

    def where():
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")

    tasks = Tasks(ray, restarts=0, wait_s=0)
    for build in matrix.builds:
        tasks.add(build.target.name, ray.remote(max_calls=1)(where), _demands(build))
    found = {name: result.value for name, result in tasks.results()}
    elsewhere = {"another", "none_of"}
    assert {name for name, (place, _) in found.items() if place != node} == elsewhere
    with_gpu = {name for name, (_, devices) in found.items() if devices == "0"}
    assert with_gpu == {"kind", "any", "all"}


def test_targets_that_no_node_serves(cluster, node, tmp_path):
    lacking = {
        "gpu: L4": "CPU 1, GPU 1, a GPU of kind L4",
        "gpu: any, labels: {kind: b}": "CPU 1, GPU 1, label kind=b",
        "labels: {tensorrt: 'in(11, 12)'}": "CPU 1, label tensorrt=in(11,12)",
        "labels: {tensorrt: '!10', kind: '!in(b)'}, resources: {license: 1}": (
            "CPU 1, license 1, label tensorrt=!10, label kind=!in(b)"
        ),
        "labels: {tensorrt: '(10)'}": "CPU 1, label tensorrt=(10)",
        "resources: {license: 3}": "CPU 1, license 3",
        "cpus: 2": "CPU 2",
    }
    names = {f"t{number}": text for number, text in enumerate(lacking)}
    matrix = write_matrix(tmp_path, [f"name: {n}, backend: rtx, {t}" for n, t in names.items()])
    report = build_all(matrix, wait_s=3)
    assert {row.build.target.name: row.failure.message for row in report.rows} == {
        name: f"target {name}: no node of the cluster has {lacking[text]}, and none came in 3 s;"
        " add one, or wait for it"
        for name, text in names.items()
    }
    assert report.seconds < 60


def test_demands_that_ray_does_not_take(cluster, tmp_path):
    matrix = write_matrix(
        tmp_path,
        ["name: label, labels: {a: 'no value'}", "name: cpu, resources: {CPU: 1}", "name: right"],
    )
    rows = {row.build.target.name: row for row in build_all(matrix).rows}
    assert rows["right"].state == "built"
    for name in ("label", "cpu"):
        assert rows[name].starts == 0
        assert rows[name].failure.message.startswith(
            f"target {name}: Ray does not take what is asked of a node: "
        )
    assert "no value" in rows["label"].failure.message


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")
def test_nodes_without_a_gpu_or_a_backend(cluster, node, tmp_path):
    matrix = write_matrix(
        tmp_path,
        [
            "name: warm, backend: rtx, gpu: H100, warm: true",
            "name: tensorrt, backend: tensorrt, gpu: H100",
            "name: cards, backend: rtx, compute_capabilities: ['8.9', '12.0']",
            "name: old, backend: rtx, compute_capabilities: ['1.1']",
        ],
    )
    rows = {row.build.target.name: row for row in build_all(matrix).rows}
    plan = Plan.load(rows.pop("cards").path)
    assert plan.manifest.compute_capabilities == ("8.9", "12.0")
    starts = "target warm: ", "target tensorrt: ", ""
    words = "cannot find a GPU: ", "backend 'tensorrt' is not installed; ", "1.1 is not supported"
    for row, start, text in zip(rows.values(), starts, words, strict=True):
        assert row.state == "failed"
        assert row.failure.message.startswith(start)
        assert text in row.failure.message
        assert "\n" not in row.failure.message
