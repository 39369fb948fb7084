"""Plans as other tools write them: with metadata in front, and without a manifest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import tiny_models

from trt_native import Plan, Session, build_plan
from trt_native.arrays import save_arrays
from trt_native.cli import main

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

METADATA = {"stride": 32, "task": "detect", "names": {"0": "person"}}


@pytest.fixture
def files(tmp_path):
    """An ONNX file, its plan, and the same plan as Ultralytics' exporter writes it."""
    model = tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8))
    built = build_plan(model)
    alone = tmp_path / "alone.plan"
    alone.write_bytes(built.data)
    text = json.dumps(METADATA).encode()
    prefixed = tmp_path / "m.engine"
    prefixed.write_bytes(len(text).to_bytes(4, "little", signed=True) + text + bytes(built.data))
    return model, alone, prefixed


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    return printed.out


def test_a_plan_with_metadata_runs_like_the_plan_alone(files, rng):
    _, alone, prefixed = files
    x = rng.standard_normal((1, 3, 8, 8), dtype=np.float32)
    results = []
    for plan in (alone, prefixed, Plan.load(prefixed)):
        with Session(plan) as session:
            results.append(session.run({"x": x}))
    for result in results[1:]:
        np.testing.assert_equal(result, results[0])


def test_the_commands_take_it(files, capsys, tmp_path, rng):
    model, _, prefixed = files
    save_arrays(tmp_path / "in.npz", {"x": rng.standard_normal((1, 3, 8, 8), dtype=np.float32)})
    report = json.loads(command(capsys, "inspect", prefixed, "--json"))
    assert report["prefix"] == METADATA
    assert report["layers"]
    assert report["carries"] == []
    assert json.loads(command(capsys, "doctor", prefixed, "--json"))["loads"]
    arguments = ("--input", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    command(capsys, "run", prefixed, *arguments)
    command(capsys, "verify", prefixed, "--against", model, "--random", 0)
    command(capsys, "bench", prefixed, "--duration", 0.05)
    out = command(capsys, "deploy", "trtexec", prefixed, "-o", tmp_path / "only.plan")
    assert str(tmp_path / "only.plan") in out
    with Session(tmp_path / "only.plan") as session:
        expected = session.run(dict(np.load(tmp_path / "in.npz")))
    np.testing.assert_equal(dict(np.load(tmp_path / "out.npz")), expected)
