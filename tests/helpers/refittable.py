"""Plans as a machine with a GPU would have built them to be refitted, as far as manifests show."""

from __future__ import annotations

from helpers.made_plans import make_plan, tensor
from trt_native import BuildConfig
from trt_native.builder.build import lower, prepare, refit_record
from trt_native.graph.onnx_file import read_model

IO = (
    tensor("x", "input", "float32", shape=(2, 3)),
    tensor("y", "output", "float32", shape=(2, 3)),
)


def record_of(model, config=None, *, backend="rtx"):
    """The weights that TensorRT would parse, and where they come from."""
    prepared = prepare(model, config or BuildConfig(), backend=backend)
    with lower(prepared) as lowered:
        return refit_record(prepared, lowered, read_model(lowered.path))


def lowered_weights(model, config=None):
    """The values that TensorRT would parse, by name."""
    prepared = prepare(model, config or BuildConfig(), backend="rtx")
    with lower(prepared) as lowered:
        graph = read_model(lowered.path).graph
        return {name: one.const_value.numpy().copy() for name, one in graph.initializers.items()}


def made_refittable(path, record, **options):
    """A plan of no use but for its manifest, which has this record."""
    options = {"refit": True, **options}
    return make_plan(path, IO, options=options, refit=record.to_json())
