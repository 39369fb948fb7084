"""What operators of the domain ``com.microsoft`` have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array

__all__ = ["ContribOperator", "padded"]


class ContribOperator(OpRun):
    """An operator of ONNX Runtime, by a formula of its documentation."""

    op_domain = "com.microsoft"

    def options(self, **defaults: Any) -> dict[str, Any]:
        """The node's attributes, with defaults for those that it lacks."""
        given = {
            attribute.name: onnx.helper.get_attribute_value(attribute)
            for attribute in self.onnx_node.attribute
        }
        return {**defaults, **given}

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        return (self.compute(*inputs),)

    def compute(self, *inputs: Any) -> Array:
        """The only output."""
        raise NotImplementedError

    def several(self, *outputs: Any) -> tuple[Any, ...]:
        """As many outputs as the node has.

        Raises:
            NotImplementedError: it has more.
        """
        count = len(self.onnx_node.output)
        if count > len(outputs):
            raise NotImplementedError(f"{count} outputs")
        return tuple(np.asarray(array) for array in outputs[:count])

    def lacks(self, **options: Any) -> None:
        """Check that attributes and inputs that are not computed are left out.

        Raises:
            NotImplementedError: one is given.
        """
        for name, value in options.items():
            if value is not None and not (np.isscalar(value) and value == 0):
                raise NotImplementedError(name)


def padded(inputs: tuple[Any, ...], count: int) -> list[Any]:
    """The inputs, with None for those that are left out behind them."""
    return [*inputs, *[None] * (count - len(inputs))]
