"""The shell command that builds a plan again from its manifest."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from trt_native.cli.options import flag_words
from trt_native.config import BuildConfig
from trt_native.errors import PlanError
from trt_native.files import with_ending
from trt_native.plans.compatibility import Environment, targets_gpu
from trt_native.plans.manifest import Manifest

__all__ = ["rebuild_command"]


# The timing cache does not change the plan, and timings of another GPU or version are refused.
_NOT_REPEATED = ("profiles", "timing_cache")


def rebuild_command(manifest: Manifest, plan: Path, environment: Environment | None = None) -> str:
    """The shell command that builds a plan again, from its manifest.

    Args:
        manifest: The plan's manifest.
        plan: The plan to write; the ONNX file is assumed to be next to it.
        environment: The machine that is to load it; a plan that targets other GPUs is then built
            for this one. None repeats the build as it was.

    Raises:
        PlanError: the manifest's options are not those of a build.
    """
    try:
        return _rebuild_command(manifest, plan, environment)
    except (AttributeError, KeyError, TypeError) as error:
        raise PlanError(f"malformed manifest: options: {error}") from None


def _rebuild_command(manifest: Manifest, plan: Path, environment: Environment | None) -> str:
    model = plan.parent / Path(manifest.model["file"]).name
    words = ["trt-native", "build", str(model), "-o", str(plan)]
    words += ["--backend", "rtx" if manifest.backend == "rtx" else "tensorrt"]
    options = {k: v for k, v in manifest.options.items() if k not in _NOT_REPEATED}
    unknown = set(options) - set(BuildConfig.__dataclass_fields__)
    if unknown:
        raise PlanError(f"malformed manifest: no build options: {', '.join(sorted(unknown))}")
    options.update(options.pop("quantization", {}))
    here = environment.compute_capability if environment else None
    if here and options.get("compute_capabilities") and not targets_gpu(manifest, here):
        options["compute_capabilities"] = [here]
    before, profile_words = _profile_words(manifest.options.get("profiles") or [], plan)
    words += profile_words
    for name, value in options.items():
        words += flag_words(name, value)
    return before + shlex.join(words)


def _profile_words(profiles: Any, plan: Path) -> tuple[str, list[str]]:
    """A command to run first, and the words that give a build these profiles."""
    if len(profiles) > 1:
        file = str(with_ending(plan, ".profiles.json"))
        content = shlex.quote(json.dumps({"profiles": profiles}))
        return f"printf %s {content} > {shlex.quote(file)} && ", ["--profile", file]
    words = []
    for profile in profiles:
        for section, option in (("dims", "--dim"), ("shapes", "--shape")):
            for name, text in profile.get(section, {}).items():
                words += [option, f"{name}={text}"]
    return "", words
