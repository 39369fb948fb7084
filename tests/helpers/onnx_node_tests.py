"""ONNX's own tests of single nodes, a few operators at a time: all of them take seconds to make."""

from __future__ import annotations

import importlib
import warnings
from functools import cache

import numpy as np
from onnx.backend.test.case import node
from onnx.backend.test.case.test_case import TestCase


@cache
def node_tests(*modules: str) -> tuple[TestCase, ...]:
    """The tests of modules of ``onnx.backend.test.case.node``, without those by other operators.

    Their inputs and outputs are in ``data_sets``.
    """
    found = []
    for module in modules:
        before = len(node._NodeTestCases)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
        found += node._NodeTestCases[before:]
    return tuple(case for case in found if "_expanded" not in case.name)
