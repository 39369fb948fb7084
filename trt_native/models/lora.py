"""LoRA adapters in loaded engines, from the files of diffusers, PEFT and kohya's scripts."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.errors import MergedWeightsError, ModelError, SpecError, UnsupportedError
from trt_native.graph.onnx_file import read_model
from trt_native.graph.refit_record import RefitRecord
from trt_native.models.latentsync.checkpoint import load_safetensors
from trt_native.plans.manifest import find_model
from trt_native.runtime.engine import Engine
from trt_native.shapes import format_shape

__all__ = ["LoraLayer", "LoraStack", "read_lora"]

_LOGGER = logging.getLogger(__name__)
_FACTOR = re.compile(
    r"(?P<module>.+?)(?:[._]lora|\.lora_linear_layer)?[._](?:lora_)?(?P<factor>down|up|A|B)"
    r"(?:\.[\w-]+)?\.weight"
)
_ALPHA = re.compile(r"(?P<module>.+?)(?:[._]lora)?(?:\.(?:down|up)\.weight)?\.alpha")
_TEXT_ENCODER = re.compile(r"(?:base_model\.model\.)?(?:lora_te\d?_|text_encoder(?:_\d)?[._])")
_PREFIX = re.compile(r"(?:base_model\.model\.)?(?:lora_unet_|unet\.)?")
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """The change of one layer's weight, ``factor * up @ down``.

    Attributes:
        up: float[outputs, rank], with further axes of 1 for a convolution.
        down: float[rank, inputs], followed by the axes of a convolution's kernel.
        factor: ``alpha / rank``.
    """

    up: Array
    down: Array
    factor: float

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the factors are those of a weight of this shape in PyTorch's layout."""
        return (
            len(shape) > 1
            and len(self.down) == self.up.shape[1]
            and math.prod(self.up.shape[2:]) == 1
            and len(self.up) == shape[0]
            and math.prod(self.down.shape[1:]) == math.prod(shape[1:])
        )

    def delta(self, shape: Sequence[int]) -> Array:
        """The change, in float32, of a weight whose shape fits."""
        rank = self.up.shape[1]
        up, down = self.up.reshape(-1, rank), self.down.reshape(rank, -1)
        product = up.astype(np.float32) @ down.astype(np.float32)
        delta: Array = (product * np.float32(self.factor)).reshape(shape)
        return delta


def read_lora(path: str | os.PathLike[str]) -> dict[str, LoraLayer]:
    """Read the layers of a U-Net from a ``.safetensors`` file.

    Names may be those of diffusers (``unet.X.lora.down.weight``,
    ``X.processor.to_q_lora.up.weight``), of PEFT (``X.lora_A.weight``) or of kohya's scripts
    (``lora_unet_X.lora_down.weight``, with underscores in ``X``). Layers of text encoders are left
    out, with a warning.

    Returns:
        The layers by the name of their module, with underscores for dots.

    Raises:
        ModelError: the file is missing, damaged, or has a factor of a layer without the other.
        UnsupportedError: it has something else than LoRA's two factors, such as DoRA's magnitudes.
    """
    state = load_safetensors(Path(path)).state_dict
    text = [name for name in state if _TEXT_ENCODER.match(name)]
    if text:
        _LOGGER.warning("%s: %d tensors of text encoders are left out", path, len(text))
    factors: dict[str, dict[str, Any]] = {}
    alphas: dict[str, float] = {}
    strange = []
    for name in sorted(state.keys() - set(text)):
        if found := _FACTOR.fullmatch(name):
            kind = {"A": "down", "B": "up"}.get(found["factor"], found["factor"])
            factors.setdefault(_module(found["module"]), {})[kind] = state[name]
        elif found := _ALPHA.fullmatch(name):
            alphas[_module(found["module"])] = float(state[name].numpy().reshape(-1)[0])
        else:
            strange.append(repr(name))
    if strange or not factors:
        raise UnsupportedError(
            f"{path}: only LoRA's two factors of each layer and their alpha can be loaded"
            + (", not:" if strange else "; it has none of a U-Net"),
            problems=strange,
        )
    half = [module for module, pair in factors.items() if len(pair) < 2]
    if half or alphas.keys() - factors.keys():
        lost = sorted({*half, *(alphas.keys() - factors.keys())})
        raise ModelError(f"{path}: layers without both factors:", problems=[*map(repr, lost)])
    default = _Alphas.read(Path(path))
    return {
        module: _layer(pair["up"].numpy(), pair["down"].numpy(), alphas.get(module), default)
        for module, pair in factors.items()
    }


@dataclass(frozen=True, slots=True)
class _Alphas:
    """What a file's metadata says about alpha.

    Attributes:
        alpha: That of every layer; None: the rank.
        stabilized: Divide it by the square root of the rank.
    """

    alpha: float | None = None
    stabilized: bool = False

    @classmethod
    def read(cls, path: Path) -> _Alphas:
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(_METADATA)
        if text is None:
            return cls()
        try:
            data = json.loads(text)
            known = {name.removeprefix("unet."): value for name, value in data.items()}
            alpha, stabilized = known.get("lora_alpha"), bool(known.get("use_rslora"))
            patterns = known.get("alpha_pattern")
            found = cls(None if alpha is None else float(alpha), stabilized)
        except (AttributeError, TypeError, ValueError, RecursionError):
            raise ModelError(f"{path}: the metadata entry {_METADATA!r} is malformed") from None
        if patterns:
            raise UnsupportedError(
                f"{path}: its layers have different alphas (alpha_pattern); save it with an alpha"
                " for each layer, as kohya's format has them"
            )
        return found


def _layer(up: Array, down: Array, alpha: float | None, default: _Alphas) -> LoraLayer:
    if up.ndim < 2 or down.ndim < 2:
        raise ModelError(
            f"LoRA factors {format_shape(up.shape)} and {format_shape(down.shape)}: not matrices"
        )
    rank = max(len(down), 1)
    alpha, stabilized = (default.alpha, default.stabilized) if alpha is None else (alpha, False)
    divisor = math.sqrt(rank) if stabilized else rank
    return LoraLayer(up, down, (rank if alpha is None else alpha) / divisor)


def _module(name: str) -> str:
    name = _PREFIX.sub("", name, count=1)
    name = re.sub(r"\.processor\.to_out$", ".to_out.0", name).replace(".processor.", ".")
    return name.replace(".", "_")


@dataclass(frozen=True, slots=True)
class _Place:
    """A weight of an ONNX file.

    Attributes:
        name: Its name.
        transposed: Whether it is stored the other way around than in PyTorch.
    """

    name: str
    transposed: bool


class _Base:
    """The weights that an engine's plan was built from.

    Args:
        engine: The engine.
        model: The ONNX file; None for the one next to the plan.
    """

    def __init__(self, engine: Engine, model: Path | None) -> None:
        self.engine = engine
        self._record = RefitRecord.of(engine.plan)
        self._values = read_model(model or _model_of(engine)).graph.initializers
        self._merged = False
        self.places = dict(_places(spec.name for spec in engine.replaceable_weights))

    def refit(self, new: Mapping[str, Array], adapters: Mapping[str, _Adapter]) -> None:
        """Replace weights; all of them where TensorRT has merged some of these with others."""
        if not self._merged:
            try:
                self.engine.refit(new)
            except MergedWeightsError:
                self._merged = True
            else:
                return
        others = (spec.name for spec in self.engine.replaceable_weights)
        values = {name: self.value(name) for name in others if name in self._values}
        self.engine.refit({**values, **_summed(self, self.places, adapters)})

    def value(self, name: str) -> Array:
        """A weight, once it is known to be the plan's own.

        Raises:
            SpecError: the ONNX file is not the one that the plan was built from.
        """
        tensor = self._values[name].const_value if name in self._values else None
        array = None if tensor is None else tensor.numpy()
        if array is None or not self._record.is_own(name, array):
            raise SpecError(
                f"weight {name!r} of the ONNX file is not that of the plan, which adapters are"
                " added to: give the file that the plan was built from",
                options=("models",),
            )
        return array.astype(np.float32)


def _model_of(engine: Engine) -> Path:
    plan = engine.plan
    found, advice = None, "the plan is not a file"
    if plan.path is not None and plan.manifest is not None:
        found, advice = find_model(plan.manifest, plan.path)
    if found is None:
        raise SpecError(
            f"adapters are added to the weights in the ONNX file of the plan, and {advice}",
            options=("models",),
        )
    return found


def _places(names: Iterable[str]) -> Iterator[tuple[str, _Place]]:
    for name in names:
        for suffix in (".weight", ".weight.T"):
            if name.endswith(suffix):
                module = name.removesuffix(suffix).replace(".", "_")
                yield module, _Place(name, suffix.endswith(".T"))


@dataclass(frozen=True, slots=True)
class _Adapter:
    layers: Mapping[str, LoraLayer]
    scale: float


class LoraStack:
    """LoRA adapters in one or more engines of a U-Net, of plans that were built with ``refit``.

    Weights of the ONNX file are found by the names of PyTorch's modules, ``X.weight`` or, where
    they are transposed, ``X.weight.T``. Only those that an adapter changes are replaced; see
    :meth:`~trt_native.runtime.engine.Engine.refit` for what that means for runs.

    Args:
        engines: The engines; the caller keeps them open. An adapter must fit them together.
        models: For each the ONNX file that its plan was built from. None: those next to the plans.

    Raises:
        PlanError: the weights of a plan cannot be replaced.
        SpecError, ModelError: an ONNX file is missing or damaged.
    """

    def __init__(
        self, *engines: Engine, models: Sequence[str | os.PathLike[str]] | None = None
    ) -> None:
        if not engines or (models is not None and len(models) != len(engines)):
            raise SpecError(
                f"{len(models or ())} ONNX files for {len(engines)} engines: give one for each",
                options=("models",),
            )
        files = [None] * len(engines) if models is None else [Path(one) for one in models]
        self._bases = [_Base(*pair) for pair in zip(engines, files, strict=True)]
        self._adapters: dict[str, _Adapter] = {}

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each adapter that is loaded, by name."""
        return {name: adapter.scale for name, adapter in self._adapters.items()}

    def load(
        self, path: str | os.PathLike[str], scale: float = 1.0, *, name: str | None = None
    ) -> str:
        """Add an adapter to the weights, or load it again with another scale.

        Args:
            path: The file; see :func:`read_lora`.
            scale: Factor of all its changes.
            name: Name for :meth:`unload`. None: that of the file, without its suffix.

        Returns:
            The name.

        Raises:
            ModelError, UnsupportedError: as :func:`read_lora`.
            SpecError: a layer is not in the U-Net, or of another shape; all problems in one error,
                and the engines are as they were. Also as :meth:`Engine.refit
                <trt_native.runtime.engine.Engine.refit>`.
            PlanError, CudaError, ClosedError: as that.
        """
        name = Path(path).stem if name is None else name
        layers = read_lora(path)
        self._check(layers, Path(path))
        self._become({**self._adapters, name: _Adapter(layers, float(scale))})
        return name

    def unload(self, name: str | None = None) -> None:
        """Take an adapter's changes out of the weights; those of all where none is named.

        Raises:
            SpecError: there is no such adapter. Also, like other errors, as :meth:`load`.
        """
        if name is not None and name not in self._adapters:
            loaded = ", ".join(map(repr, self._adapters)) or "none is loaded"
            raise SpecError(f"no adapter {name!r}: {loaded}", options=("name",))
        kept = {other: one for other, one in self._adapters.items() if name not in (None, other)}
        self._become(kept)

    def _check(self, layers: Mapping[str, LoraLayer], path: Path) -> None:
        places = {module for base in self._bases for module in base.places}
        problems = [f"{module} is not in the U-Net" for module in layers if module not in places]
        for base in self._bases:
            shapes = {spec.name: spec.shape or () for spec in base.engine.replaceable_weights}
            for module in layers.keys() & base.places.keys():
                layer, place = layers[module], base.places[module]
                shape = tuple(int(extent) for extent in shapes[place.name] if extent is not None)
                if not layer.fits(shape[::-1] if place.transposed else shape):
                    problems.append(
                        f"{module}: factors {format_shape(layer.up.shape)} and"
                        f" {format_shape(layer.down.shape)} for {place.name!r} of"
                        f" {format_shape(shape)}"
                    )
        if problems:
            raise SpecError(
                f"{path} does not fit the U-Net:", problems=sorted(set(problems)), options=("path",)
            )

    def _become(self, adapters: dict[str, _Adapter]) -> None:
        before, done = self._adapters, []
        changed = {
            module
            for name in before.keys() | adapters.keys()
            if before.get(name) is not adapters.get(name)
            for one in (before.get(name), adapters.get(name))
            if one is not None
            for module in one.layers
        }
        values = [_summed(base, changed, adapters) for base in self._bases]
        try:
            for base, new in zip(self._bases, values, strict=True):
                if new:
                    base.refit(new, adapters)
                done.append(base)
        except BaseException:
            for base in done:
                base.refit(_summed(base, changed, before), before)
            raise
        self._adapters = adapters


def _summed(
    base: _Base, modules: Iterable[str], adapters: Mapping[str, _Adapter]
) -> dict[str, Array]:
    """Weights of some modules with the changes of all adapters."""
    found = {}
    for module in sorted(base.places.keys() & set(modules)):
        place = base.places[module]
        value = base.value(place.name)
        value = value.T if place.transposed else value
        for adapter in adapters.values():
            if module in adapter.layers:
                delta = adapter.layers[module].delta(value.shape)
                value = value + np.float32(adapter.scale) * delta
        found[place.name] = value.T if place.transposed else value
    return found
