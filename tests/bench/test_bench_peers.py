"""The comparison of runtimes: its checks, its processes and its tables, without a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import itertools
import json
import sys

import numpy as np
import onnx
import pytest
import typer
from helpers import ROOT
from onnx.reference import ReferenceEvaluator

from trt_native.errors import SpecError

MODULES = ("peers", "peer_process", "convolutions", "machine", "bare", "processes")
SHAPE = (1, 2, 4, 6)
TEXT = "1x2x4x6"


@pytest.fixture
def script(monkeypatch):
    """Imports a script of scripts/bench, fresh, as Python does when it runs one of them."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def process(script, monkeypatch):
    """The program of a single process, quickly done."""
    module = script("peer_process")
    monkeypatch.setattr(module, "WARM_SECONDS", 0)
    return module


@pytest.fixture
def setup(process, tmp_path):
    """Two inputs of a plan that doubles."""
    x = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x.astype(np.float64) * 2)
    (tmp_path / "plan").write_bytes(b"a plan")
    setup = process.Setup(str(tmp_path), "tensorrt_rtx", "1.6.1.120", SHAPE, 2e-3)
    setup.save()
    return setup


def use(process, monkeypatch, **computes):
    """Puts functions in the place of ways; returns the inputs that each was called with."""
    seen = {name: [] for name in computes}

    @contextlib.contextmanager
    def load(setup, name):
        x = np.empty(setup.shape, np.float32)

        def call():
            seen[name].append(x.copy())
            return computes[name](x)

        yield process.Runner(lambda given: np.copyto(x, given), call, np.array)

    ways = dict(process.WAYS)
    for name in computes:
        like = ways.get(name, ways["bare"])
        ways[name] = dataclasses.replace(like, load=functools.partial(load, name=name))
    monkeypatch.setattr(process, "WAYS", ways)
    return seen


def test_a_right_way_is_timed_with_the_first_input(process, setup, monkeypatch):
    seen = use(process, monkeypatch, bare=lambda x: x * 2, other=lambda x: x + x)
    for name in ("bare", "other"):
        row = process.measure(setup, name, 0)
        assert len(row["ns"]) == process.LEAST_SAMPLES
        assert all(type(ns) is int and ns >= 0 for ns in row["ns"])
        assert row["same_bits"]
        assert row["relative_l2"] < 1e-6
        np.testing.assert_array_equal(seen[name][-1], setup.load("x.npy")[0])
    np.testing.assert_array_equal(setup.load("bare.npy"), setup.load("x.npy") * 2)


def test_times_are_those_of_one_inference(process, monkeypatch):
    ticks = itertools.count(0, 1000)
    monkeypatch.setattr(process.time, "perf_counter_ns", lambda: next(ticks))
    runner = process.Runner(None, lambda: None, None, 10)
    assert process._times(runner, 0) == [100] * process.LEAST_SAMPLES


@pytest.mark.parametrize(
    ("compute", "against"),
    [
        (lambda x: x * np.float32(2.01), "PyTorch"),
        (lambda x: x * np.float32(np.nan), "PyTorch"),
        (lambda x: x * np.float32(2.0002), "bare TensorRT"),
    ],
)
def test_a_wrong_way_is_not_timed(process, setup, monkeypatch, compute, against):
    seen = use(process, monkeypatch, bare=lambda x: x * 2, wrong=compute)
    process.measure(setup, "bare", 0)
    with pytest.raises(process.WrongResultError, match=f"against {against}"):
        process.measure(setup, "wrong", 0)
    assert len(seen["wrong"]) <= 4


def test_a_result_of_an_earlier_input_is_noticed(process, setup, monkeypatch):
    earlier = [setup.load("x.npy")[1] * 2]

    def late(x):
        earlier.append(x * 2)
        return earlier[-2]

    seen = use(process, monkeypatch, bare=late)
    with pytest.raises(process.WrongResultError):
        process.measure(setup, "bare", 0)
    assert len(seen["bare"]) == 2


def test_a_process_prints_one_line(process, setup, monkeypatch, capsys):
    def missing(_):
        raise ImportError("No module named 'peer'")

    def lacking(_):
        raise process.Unavailable("no such GPU")

    def broken(_):
        raise ValueError("out of\nmemory")

    ways = {"missing": missing, "lacking": lacking, "broken": broken}
    use(process, monkeypatch, bare=lambda x: x * 2, **ways)
    printed = {}
    for name in ("bare", *ways):
        process.main(name, setup.folder, "0")
        (line,) = capsys.readouterr().out.splitlines()
        printed[name] = json.loads(line)
    assert printed["bare"]["calls"] == 1
    assert printed["missing"] == {"unavailable": "No module named 'peer'"}
    assert printed["lacking"] == {"unavailable": "no such GPU"}
    assert printed["broken"] == {"failed": "ValueError: out of\nmemory"}


def test_the_plan_of_onnx_runtime_is_the_same(process, setup):
    model = onnx.load_from_string(process._context_model(setup, "provider"))
    (node,) = model.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (node.domain, node.op_type) == ("com.microsoft", "EPContext")
    assert attributes["ep_cache_context"] == b"a plan"
    assert attributes["embed_mode"] == 1
    assert attributes["source"] == b"provider"


def test_a_real_process_says_what_it_lacks(script, setup, monkeypatch):
    peers = script("peers")
    other = peers.Setup(setup.folder, "tensorrt", "11.4.0", SHAPE, 2e-3)
    other.save()
    comparison = peers.Comparison()
    peers.run(comparison, other, "onnxruntime", 0, 60)
    assert comparison.unavailable == {"onnxruntime": "the plan is not one of TensorRT-RTX"}

    def crash(*_):
        raise peers.ProcessError("the process ended with -11")

    monkeypatch.setattr(peers, "read_lines", crash)
    peers.run(comparison, other, "polygraphy", 0, 60)
    assert comparison.failed == {"polygraphy": "the process ended with -11"}


def test_the_order_turns_around(script):
    peers = script("peers")
    order = [(turn, setup, name) for turn, setup, name in peers.schedule("ab", ["p", "q"], 2)]
    assert order[:4] == [(0, "a", "p"), (0, "a", "q"), (0, "b", "p"), (0, "b", "q")]
    assert [(s, n) for _, s, n in order[4:]] == [(s, n) for _, s, n in order[3::-1]]


def test_bare_tensorrt_is_always_there(script):
    peers = script("peers")
    assert peers.chosen("trtutils, session") == ["bare", "session", "trtutils"]
    with pytest.raises(SpecError, match="no way has the name 'tensorrt'; there are bare, "):
        peers.chosen("bare,tensorrt")


def row(*us, calls=1):
    return {"ns": [int(one * 1e3) for one in us], "calls": calls, "relative_l2": 0.0} | {
        "same_bits": True
    }


def test_tables_and_ratios(script):
    peers = script("peers")
    found = peers.Comparison()
    found.note(TEXT, "bare", row(40, 40))
    for times in ((49, 50), (50, 150)):
        found.note(TEXT, "session", row(*times))
    found.note(TEXT, "session-map", row(100, calls=100))
    found.note(TEXT, "polygraphy", row(200))
    found.note(TEXT, "polygraphy-torch", row(700))
    found.note(TEXT, "polygraphy-numpy", row(1000))
    found.note(TEXT, "trtutils", row(20))
    found.note("2x2", "trtutils", {"failed": "WrongResultError: off"})
    found.note(TEXT, "onnxruntime", {"unavailable": "no\nGPU"})
    assert found.measured[TEXT]["session"].to_json()["process_medians_us"] == [49.5, 100]
    text = "\n".join(peers.tables(found))
    assert f"| µs per call |  | {TEXT}: p50 / p90 / p99 |\n|---|---|---|\n" in text
    assert "| trt_native | Session.run, torch tensors | 50.0 / 120.0 / 147.0 |" in text
    assert "| Polygraphy | DeviceView | 200.0 / 200.0 / 200.0 |" in text
    assert "GPU, over Session.run, torch tensors |  | 0.80 |" in text  # bare TensorRT
    assert "trtutils" not in text  # a way that failed once is not one to compare with
    assert "GPU, over Session.run, torch tensors | 2 | 4.00 |" in text
    assert "| Polygraphy | NumPy arrays, over Session.map, NumPy | 4 | 10.00 |" in text
    facts = {"gpu": {"name": "a GPU"}, "versions": {"torch": "2"}, "command": "peers.py"}
    lines = list(peers.closing(found, facts))
    plugin = "ONNX Runtime's TensorRT-RTX plug-in, IO binding, CUDA graph"
    assert f"- Not here: {plugin}: no GPU" in lines
    assert "- processes of each way and shape: 1 to 2" in lines
    assert "- results: of all the same, bit for bit" in lines
    assert "- Failed: trtutils, raw_exec: WrongResultError: off" in lines
    assert lines[-1] == "- command: `peers.py`"


@pytest.mark.backend
def test_compare(script, process, monkeypatch, tmp_path, capsys):
    """From the model to both files, with a real plan and PyTorch in the GPU's place."""
    peers = script("peers")
    y = {}

    def known(x):
        return y[x.tobytes()]

    use(process, monkeypatch, bare=known, session=known, polygraphy=known, trtutils=lambda x: x)
    monkeypatch.setattr(peers, "WAYS", process.WAYS)
    monkeypatch.setattr(peers, "SHAPES", (SHAPE,))

    def in_process(words, note, seconds):
        _, program, name, folder, timed_s = words
        assert program == str(peers.PROCESS)
        assert seconds == 90
        setup = process.Setup.read(folder)
        assert setup.module in ("tensorrt", "tensorrt_rtx")
        for x, expected in zip(setup.load("x.npy"), setup.load("y.npy"), strict=True):
            model = ReferenceEvaluator(f"{folder}/model.onnx")
            y[x.tobytes()] = model.run(None, {"x": x})[0]
            np.testing.assert_allclose(y[x.tobytes()], expected, atol=1e-5)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            process.main(name, folder, timed_s)
        note(json.loads(printed.getvalue()))

    monkeypatch.setattr(peers, "read_lines", in_process)
    output, markdown = tmp_path / "o.json", tmp_path / "o.md"
    with pytest.raises(typer.Exit) as ended:
        peers.compare("session,polygraphy,trtutils", 2, 0.0, 90.0, 60.0, output, markdown)
    assert ended.value.exit_code == 1
    data = json.loads(output.read_text())
    assert list(data["shapes"][TEXT]) == ["bare", "session", "polygraphy"]
    assert data["shapes"][TEXT]["session"]["samples"] == [process.LEAST_SAMPLES] * 2
    assert data["shapes"][TEXT]["session"]["same_bits_as_bare"]
    assert data["failed"].keys() == {"trtutils"}
    assert data["failed"]["trtutils"].startswith("WrongResultError: relative L2 error")
    assert data["versions"]["numpy"] == np.__version__
    assert [(one["peer"], one["over"]) for one in data["ratios"]] == [
        ("bare TensorRT", "session"),
        ("Polygraphy", "session"),
    ]
    assert {"command", "gpu", "unavailable"} <= data.keys()
    assert capsys.readouterr().out.rstrip("\n") == markdown.read_text().rstrip("\n")
