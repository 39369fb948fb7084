#!/usr/bin/env python3
"""Measure builds on Ray against the same builds by hand, and kill nodes and workers meanwhile.

Needs the extra ``ray``, no GPU. Builds small models with TensorRT-RTX: first with as many processes
as there are workers, by hand and by build_all in turn; then on three nodes of Ray, of which one is
killed, and ten workers at random moments. Each plan must be in the store once, whole, and equal to
that of a build by hand, and a second run must build none. Ray listens on the loopback interface.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read by Ray: listen on loopback alone
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"

import numpy as np
import onnx
import ray
import ray.cluster_utils
import typer
from onnx import helper, numpy_helper

from trt_native.builder.isolated import build_isolated
from trt_native.cli.console import report_errors, stderr, stdout, table
from trt_native.errors import BuildError
from trt_native.plans.plan import Plan
from trt_native.ray import BuildStore, FarmReport, Matrix, build_all, read_matrix

PRECISIONS = ("fp32", "fp16", "bf16")
LOOPBACK = "127.0.0.1"
WORKER = b"ray::build_on_node"


def save_model(path: Path, seed: int) -> None:
    """Save two convolutions with weights of a seed."""
    generator = np.random.default_rng(seed)
    weights = {
        "first": generator.standard_normal((16, 3, 3, 3), np.float32),
        "second": generator.standard_normal((8, 16, 3, 3), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["y"], pads=[1, 1, 1, 1]),
    ]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, 32, 32])
        for name, channels in (("x", 3), ("y", 8))
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], initializers)
    imports = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)


def make_matrix(folder: Path, models: int) -> Matrix:
    """Save models and a matrix of them in each precision."""
    for i in range(models):
        save_model(folder / f"m{i:03}.onnx", i)
    path = folder / "matrix.yaml"
    path.write_text(
        f"models: ['*.onnx']\nprecisions: [{', '.join(PRECISIONS)}]\n"
        "targets: [{name: any, backend: rtx, timeout: 10m}]\n"
    )
    return read_matrix(path)


@contextlib.contextmanager
def cluster_of(cpus: list[int]) -> Iterator[Any]:
    """Start a node for each number of CPUs, connect, and end them all."""
    node: dict[str, Any] = {"node_ip_address": LOOPBACK, "object_store_memory": 100 << 20}
    made: Any = ray.cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={**node, "num_cpus": cpus[0], "include_dashboard": False},
    )
    try:
        for count in cpus[1:]:
            made.add_node(**node, num_cpus=count)
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def by_hand(matrix: Matrix, workers: int, folder: Path) -> float:
    """Build all with some processes at a time; returns seconds."""
    folder.mkdir()
    started = time.perf_counter()

    def build(numbered: tuple[int, Any]) -> None:
        number, one = numbered
        build_isolated(one.file, one.config, backend="rtx").save(folder / f"{number}.plan")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(build, enumerate(matrix.builds)))
    return time.perf_counter() - started


def on_ray(matrix: Matrix, workers: int, store: Path) -> float:
    """Build all on a cluster that has started; returns seconds."""
    with cluster_of([workers]):
        report = build_all(matrix, store=str(store))
    check_built(report)
    return report.seconds


def check_built(report: FarmReport) -> None:
    """Check that nothing failed.

    Raises:
        BuildError: something did.
    """
    failed = [row for row in report.rows if row.failure is not None]
    if failed:
        raise BuildError(f"{len(failed)} builds failed: {failed[0].failure}")


def workers_of(cluster: Any) -> list[int]:
    """The processes that build, on the nodes of this cluster."""
    raylets = {
        process.process.pid
        for node in cluster.list_all_nodes()
        for process in node.all_processes.get("raylet", ())
    }
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (entry / "cmdline").read_bytes().startswith(WORKER):
                found.append(int(entry.name))
    return found


def interfere(cluster: Any, node: Any, kills: int, seconds: float, done: threading.Event) -> int:
    """Kill workers at random moments and a node in the middle; returns the number of workers."""
    random_number = random.Random(0)  # noqa: S311
    moments = sorted(random_number.uniform(0.05, 0.8) * seconds for _ in range(kills))
    started, killed = time.monotonic(), 0
    for number, moment in enumerate(moments):
        done.wait(max(0.0, started + moment - time.monotonic()))
        while not done.is_set() and not (found := workers_of(cluster)):
            time.sleep(0.01)
        if done.is_set():
            return killed
        os.kill(random_number.choice(found), signal.SIGKILL)
        killed += 1
        if number == kills // 2:
            cluster.remove_node(node, allow_graceful=False)
    return killed


def survive(
    matrix: Matrix, hand: Path, store: Path, kills: int, expected_s: float
) -> dict[str, Any]:
    """Build on three nodes while workers and a node are killed, and check every plan."""
    with cluster_of([1, 1]) as cluster:
        node = cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK)
        cluster.wait_for_nodes()
        done, killed = threading.Event(), [0]

        def kill() -> None:
            killed[0] = interfere(cluster, node, kills, expected_s, done)

        thread = threading.Thread(target=kill)
        thread.start()
        report = build_all(matrix, store=str(store), restarts=10)
        done.set()
        thread.join()
        check_built(report)
        second = build_all(matrix, store=str(store))
    plans = list((store / "plans").rglob("*.plan"))
    entries = BuildStore(store).entries()
    if not len(plans) == len(entries) == len(report.rows):
        raise BuildError(f"{len(plans)} plans and {len(entries)} entries in the store")
    for number, row in enumerate(report.rows):
        if bytes(Plan.load(row.path).data) != (hand / f"{number}.plan").read_bytes():
            raise BuildError(f"{row.path} differs from a build by hand")
    if second.counts != {"built": 0, "cached": len(plans), "failed": 0}:
        raise BuildError(f"the second run: {second.counts}")
    return {
        "builds": len(plans),
        "workers_killed": killed[0],
        "starts": sum(row.starts for row in report.rows),
        "seconds": report.seconds,
        "second_run_seconds": second.seconds,
    }


@report_errors
def main(
    models: Annotated[int, typer.Option(help="Number of models, each in 3 precisions.")] = 20,
    workers: Annotated[str, typer.Option(help="Numbers of processes at a time.")] = "1,2",
    kills: Annotated[int, typer.Option(help="Workers to kill.")] = 10,
    bound: Annotated[float | None, typer.Option(help="Most overhead to exit with 0.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Compare builds on Ray with builds by hand, and kill what builds."""
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="build_farm-") as name:
        folder = Path(name)
        matrix = make_matrix(folder, models)
        for count in map(int, workers.split(",")):
            hand = by_hand(matrix, count, folder / f"hand{count}")
            farm = on_ray(matrix, count, folder / f"store{count}")
            stderr.print(f"{count} at a time: {hand:.1f} s, on Ray {farm:.1f} s", highlight=False)
            rows.append({"workers": count, "hand_s": hand, "ray_s": farm, "ratio": farm / hand})
        last = int(rows[-1]["workers"])
        killed = survive(
            matrix, folder / f"hand{last}", folder / "killed", kills, rows[-1]["ray_s"]
        )
    table(
        f"{len(matrix.builds)} builds of {models} models",
        ("at a time", "by hand", "on Ray", "ratio"),
        (
            (
                row["workers"],
                f"{row['hand_s']:.1f} s",
                f"{row['ray_s']:.1f} s",
                f"{row['ratio']:.2f}",
            )
            for row in rows
        ),
    )
    stdout.print(
        f"three nodes, of which one was killed, and {killed['workers_killed']} workers:"
        f" {killed['builds']} plans, once, whole and equal to those by hand, in"
        f" {killed['seconds']:.1f} s with {killed['starts']} starts; a second run built none in"
        f" {killed['second_run_seconds']:.1f} s",
        highlight=False,
    )
    if output is not None:
        output.write_text(json.dumps({"timings": rows, "killed": killed}, indent=2) + "\n")
    if bound is not None and max(row["ratio"] for row in rows) > bound:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
