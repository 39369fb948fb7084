"""The record, in a plan's manifest, of the weights that can be replaced in the plan."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.errors import PlanError, SpecError, close_names
from trt_native.graph.refit_signature import RefitSignature, refit_signature
from trt_native.graph.weight_sources import WeightSource, WeightSources, gives, weight_sources
from trt_native.plans.plan import Plan

__all__ = ["RefitRecord"]


@dataclass(frozen=True, slots=True)
class RefitRecord:
    """Weights of a plan, and where they come from.

    Attributes:
        signature: That of the graph that TensorRT parsed.
        sources: Sources of its weights in the ONNX file. None: the version that built the plan did
            not record them.
        marked: Names of the only weights of that graph that can be replaced; None for all.
    """

    signature: RefitSignature
    sources: WeightSources | None = field(default=None)
    marked: frozenset[str] | None = None

    @classmethod
    def read(
        cls, original: ir.Model, lowered: ir.Model, made: Mapping[str, WeightSource]
    ) -> RefitRecord:
        """Read the weights of a rewritten graph, and verify where they come from.

        Args:
            original: As for :func:`~trt_native.graph.weight_sources.weight_sources`, as the rest.
            lowered: The same.
            made: The same.
        """
        signature = refit_signature(lowered)
        return cls(signature, weight_sources(original, signature, lowered, made))

    @classmethod
    def of(cls, plan: Plan) -> RefitRecord:
        """The record of a plan.

        Raises:
            PlanError: the plan has none, or a malformed one, or was not built as refittable.
        """
        manifest, name = plan.manifest, plan.path or "the plan"
        if manifest is None:
            raise PlanError(
                f"{name}: has no manifest, which records how the model was rewritten; build it"
                " again as refittable"
            )
        if not manifest.options.get("refit") and not manifest.options.get("strip_weights"):
            raise PlanError(
                f"{name}: its weights cannot be replaced, because it was not built as refittable;"
                " build it again"
            )
        if manifest.refit is None:
            raise PlanError(
                f"{name}: its manifest was written by {manifest.producer}, which did not record"
                " the weights; build it again"
            )
        try:
            return cls._from_json(manifest.refit)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{name}: malformed manifest: refit: {error}") from None

    @classmethod
    def _from_json(cls, data: Mapping[str, Any]) -> RefitRecord:
        signature, sources = RefitSignature(data["structure"], data["weights"]), None
        if "rewritten" in data:
            made = {name: WeightSource.from_json(one) for name, one in data["sources"].items()}
            rewritten = {str(name): tuple(to) for name, to in data["rewritten"].items()}
            unknown = made.keys() - signature.weights.keys()
            if unknown:
                raise ValueError(f"sources of weights that the plan does not have: {min(unknown)}")
            elsewhere = {name for to in rewritten.values() for name in to}
            names = signature.weights.keys() - made.keys() - elsewhere - set(data["constants"])
            made |= {name: WeightSource(name) for name in names}
            sources = WeightSources(made, rewritten)
        marked = data.get("marked")
        return cls(signature, sources, None if marked is None else frozenset(map(str, marked)))

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it.

        A weight that is not in ``sources``, ``rewritten`` or ``constants`` comes from that of its
        own name.
        """
        data = asdict(self.signature)
        if self.sources is not None:
            own = self.sources.sources
            elsewhere = {name for to in self.sources.rewritten.values() for name in to}
            data["sources"] = {
                name: source.to_json()
                for name, source in own.items()
                if source != WeightSource(name)
            }
            data["rewritten"] = {name: list(to) for name, to in self.sources.rewritten.items()}
            data["constants"] = sorted(self.signature.weights.keys() - own.keys() - elsewhere)
        if self.marked is not None:
            data["marked"] = sorted(self.marked)
        return data

    def marking(self, patterns: Sequence[str], also: Collection[str] = ()) -> RefitRecord:
        """The same for a plan of which only the weights that match a pattern can be replaced.

        Args:
            patterns: Shell patterns (``fnmatch``, case-sensitive) of names of weights in the ONNX
                file. All weights of the graph that depend on such a weight are marked.
            also: Names of weights of the graph to mark besides.

        Raises:
            SpecError: a pattern matches no weight.
        """
        assert self.sources is not None  # noqa: S101  # it was read, not loaded
        origins = {name: self.sources.made_of(name) for name in self.signature.weights}
        known = {weight for weights in origins.values() for weight in weights}
        marked = self.signature.weights.keys() & set(also)
        for pattern in patterns:
            chosen = {name for name in known if fnmatch.fnmatchcase(name, pattern)}
            if not chosen:
                close = close_names(pattern, sorted(known), 3, 0.4)
                hint = f"; close: {', '.join(close)}" if close else ""
                raise SpecError(
                    f"pattern {pattern!r} of weights to replace later matches none of the model's"
                    f" {len(known)}{hint}",
                    options=("refit_weights",),
                )
            marked |= {name for name, weights in origins.items() if weights & chosen}
        return replace(self, marked=frozenset(marked))

    def is_own(self, weight: str, array: Array) -> bool:
        """Whether a weight of the ONNX file had these values when the plan was built."""
        made = self.sources.sources.items() if self.sources else ()
        return all(
            source.weight != weight or gives(array, source.split, self.signature.weights[name])
            for name, source in made
        )

    def unmarked(self, names: frozenset[str]) -> list[str]:
        """Those of some weights of the graph that cannot be replaced, sorted."""
        return [] if self.marked is None else sorted(names - self.marked)
