"""An engine in the place of the PyTorch module that it was compiled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trt_native.builder.refit import refit_plan
from trt_native.errors import PlanError, SpecError, UnsupportedError, close_names
from trt_native.export.module import require_torch
from trt_native.export.structure import OutputStructure
from trt_native.export.weight_names import TRANSPOSED
from trt_native.plans.plan import Plan
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.runtime import Session
from trt_native.runtime.engine import Engine
from trt_native.scratch import scratch_folder
from trt_native.shapes import format_shape
from trt_native.verify.metrics import OutputComparison

require_torch()

import torch  # noqa: E402

from trt_native.compilation.compiled_plan import CompiledPlan, Recipe  # noqa: E402
from trt_native.runtime.torch_module import TensorRTModule  # noqa: E402

__all__ = ["CompiledModule"]


class CompiledModule(TensorRTModule):
    """A compiled module: takes and returns what the module it was compiled from does.

    Made by :func:`trt_native.compile`. It is called as that module is, on tensors of the shapes
    that its plan has; see :class:`~trt_native.runtime.torch_module.TensorRTModule` for streams,
    threads and gradients. Numbers, texts and flags must be those of the example.

    Attributes:
        cached: Whether its plan was built before.
        comparison: For each output the differences from the module on the example; empty where they
            were not compared.
    """

    def __init__(
        self, recipe: Recipe, compiled: CompiledPlan, output: OutputStructure, ordinal: int
    ) -> None:
        engine = Engine(compiled.plan, backend=recipe.backend, ordinal=ordinal)
        super().__init__(Session(engine))
        self.input_names = recipe.call.names
        self.cached = compiled.cached
        self.comparison: tuple[OutputComparison, ...] = ()
        self._call = recipe.call
        self._output = output
        self._output_names = compiled.outputs
        self._weights = compiled.weights
        self._recipe = recipe if recipe.config.refit else None
        takes = {tensor.name for tensor in engine.inputs}
        self._unused = tuple(name for name in recipe.call.names if name not in takes)

    @property
    def plan(self) -> Plan:
        """The plan, with the weights that it was built with or, after a refit by file, got."""
        return self.session.engine.plan

    @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the engine.

        Args:
            args: The positional arguments of the module that was compiled.
            kwargs: Its keyword arguments.

        Returns:
            What that module returns.

        Raises:
            UnsupportedError: an input requires gradients.
            SpecError: structure, constants, dtypes or shapes do not fit.
            CudaError: TensorRT failed.
        """
        outputs = self.run_named(self._flattened(args, kwargs))
        return self._output.rebuild([outputs[name] for name in self._output_names])

    def run_named(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the engine on tensors by the names of its inputs; returns its outputs by name.

        Raises:
            UnsupportedError, SpecError, CudaError: as :meth:`forward`.
        """
        used = (
            {n: v for n, v in inputs.items() if n not in self._unused} if self._unused else inputs
        )
        return self._run(dict(used))

    @shows_progress
    def refit(self, state_dict: Mapping[str, Any], *, progress: AnyProgress = None) -> None:
        """Replace all weights, without a build.

        Where every weight of the plan is one of the module's, or a matrix of it transposed, they
        are replaced in place. Where others are computed from them, as those of an LSTM or of folded
        operations, the module is exported with the new weights, which takes as long as its first
        export, and the plan is loaded again. The module itself keeps its weights.

        Args:
            state_dict: New values for all of the module's ``state_dict()``, on any device.
            progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

        Raises:
            PlanError: the module was not compiled with ``refit=True``.
            SpecError: names or shapes differ; all problems in one error. Or the plan cannot hold
                the values.
            UnsupportedError: the plan depends on activations that the old weights gave.
            CudaError: TensorRT failed.
        """
        recipe = self._recipe
        if recipe is None:
            raise PlanError(
                "the weights of this module cannot be replaced; compile it with refit=True",
                options=("refit",),
            )
        new = _fitting(recipe.module, state_dict)
        named = self._named_weights(new)
        precision = recipe.config.precision
        measured = recipe.config.quantization.calibration_data is not None
        if precision.needs_ranges or (named is None and measured):
            raise UnsupportedError(
                "the plan depends on the activations that calibration data had with the old"
                " weights; compile the module with the new ones"
            )
        if named is not None:
            self.session.engine.refit(named)
        else:
            self._refit_by_file(recipe, new, progress)

    def close(self) -> None:
        """Close the session and the engine. Idempotent."""
        self.session.close()
        self.session.engine.close()

    def _flattened(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The tensors of a call by name."""
        is_plain = self._call.is_plain and len(args) + len(kwargs) == len(self.input_names)
        if is_plain and all(map(torch.is_tensor, (*args, *kwargs.values()))):
            return self._by_name(args, kwargs)
        return self._call.flatten(args, kwargs)

    def _named_weights(self, new: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """The weights by name in the ONNX file; None where others are computed from them."""
        found: dict[str, torch.Tensor] = {}
        for key, tensor in new.items():
            names = self._weights.get(key)
            if names is None:
                return None
            for name in names:
                value = tensor.T if name.endswith(TRANSPOSED) and name != key else tensor
                if name in found and not torch.equal(found[name], value):
                    raise SpecError(
                        f"{key} shares its memory with another weight of the module, and has other"
                        " values in the new weights; compile a module that does not share it"
                    )
                found[name] = value
        replaceable = {spec.name for spec in self.session.engine.replaceable_weights}
        return found if found.keys() <= replaceable else None

    def _refit_by_file(
        self, recipe: Recipe, new: Mapping[str, torch.Tensor], progress: AnyProgress
    ) -> None:
        ordinal, own = self.session.engine.ordinal, recipe.module.state_dict(keep_vars=True)
        kept = {key: own[key].data for key in new}
        with scratch_folder() as folder:
            path = folder / f"{type(recipe.module).__name__}.onnx"
            try:
                for key, tensor in new.items():
                    own[key].data = tensor.to(kept[key].device)
                recipe.export(path, progress)
            finally:
                for key, data in kept.items():
                    own[key].data = data
            plan = refit_plan(
                self.plan, path, backend=recipe.backend, ordinal=ordinal, progress=progress
            )
        engine = Engine(replace(plan, path=None), backend=recipe.backend, ordinal=ordinal)
        self.close()
        self.session = Session(engine)


def _fitting(module: torch.nn.Module, state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """New weights in the types of the module's own.

    Raises:
        SpecError: names or shapes differ, or something is not a tensor.
    """
    if not isinstance(state_dict, Mapping):
        raise SpecError(
            f"state_dict: not a mapping of names to tensors: {type(state_dict).__name__}"
        )
    own = {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    problems = [f"{name!r} is missing" for name in own if name not in state_dict]
    for name, value in state_dict.items():
        if name not in own:
            close = close_names(str(name), own)
            hint = f"; close: {close[0]!r}" if close else ""
            problems.append(f"{name!r} is not a weight of {type(module).__name__}{hint}")
        elif not isinstance(value, torch.Tensor):
            problems.append(f"{name!r} is a {type(value).__name__}, not a tensor")
        elif value.shape != own[name].shape:
            shapes = [format_shape(tuple(t.shape)) for t in (value, own[name])]
            problems.append(f"{name!r} has the shape {shapes[0]}, the module {shapes[1]}")
    if problems:
        raise SpecError("the weights do not fit the module:", problems=problems)
    return {name: state_dict[name].detach().to(own[name].dtype) for name in own}
