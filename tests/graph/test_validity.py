"""What is said of a graph that the code cannot work with."""

from __future__ import annotations

import pytest

from trt_native.errors import ModelError, SpecError
from trt_native.graph import validity
from trt_native.graph.validity import wraps_graph_errors


@wraps_graph_errors
def work(error):
    raise error


def test_a_bug_of_ours_is_distinguished_from_a_malformed_model():
    """The message names a line of the package, and what to do where the model is good."""
    with pytest.raises(ModelError) as caught:
        work(KeyError("axis"))
    text = caught.value.message
    assert "KeyError: 'axis' (at graph/validity.py:" in text
    assert "if it finds nothing, report a bug of trt-native" in text
    assert isinstance(caught.value.__cause__, KeyError)
    assert validity._place(ValueError()) == "unknown"


@pytest.mark.parametrize(
    "error", [SpecError("x"), OSError("x"), MemoryError(), KeyboardInterrupt()]
)
def test_what_is_no_fault_of_a_graph_passes(error):
    with pytest.raises(type(error)) as caught:
        work(error)
    assert caught.value is error
