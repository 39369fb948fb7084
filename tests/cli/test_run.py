"""``trt-native run`` where its inputs do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.program import failing as fails


def test_run_refuses_without_inputs(tmp_path):
    path = tmp_path / "m.plan"
    assert "no inputs: give --input" in fails("run", path)
    assert "cannot read" in fails("run", path, "--random", "0")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x=none.npy", "cannot be read"),
        ("x=bad.npy", "not a NumPy file"),
        ("bad.npz", "not a NumPy file"),
        ("pickle.npy", "write NAME=FILE.npy"),
        ("x=pickle.npy", "not a NumPy file"),
    ],
)
def test_run_refuses_bad_input_files(tmp_path, entry, message):
    (tmp_path / "bad.npy").write_bytes(b"hello")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04hello")
    np.save(tmp_path / "pickle.npy", np.array([object()], object))
    assert message in fails("run", "m.plan", "--input", entry, cwd=tmp_path)
