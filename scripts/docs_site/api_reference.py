"""The pages of the API reference: the public names of each public module."""

from __future__ import annotations

import importlib

import trt_native

__all__ = ["PUBLIC_MODULES", "api_pages", "exports"]

PUBLIC_MODULES = {
    "trt_native": "Builds, plans, sessions: what most programs need.",
    "trt_native.config": "Values and helpers of a build's configuration.",
    "trt_native.shapes": "Shapes, ranges, profiles, descriptions of tensors.",
    "trt_native.export": "PyTorch modules to ONNX.",
    "trt_native.calibration": "Calibration data, ranges and caches.",
    "trt_native.runtime": "What a session is made of, and what it returns.",
    "trt_native.cuda": "GPU, streams, events and memory.",
    "trt_native.verify": "Plans compared with a reference.",
    "trt_native.bench": "Plans timed and compared.",
    "trt_native.inspection": "Content and differences of plans.",
    "trt_native.page": "Pages about models, plans, benchmarks and verifications.",
    "trt_native.ray": "Builds and inference on a Ray cluster.",
    "trt_native.deploy": "Triton's model repository, trtexec's command.",
    "trt_native.deploy.deepstream": "Configuration of DeepStream's Gst-nvinfer.",
    "trt_native.models.latentsync": "LatentSync's U-Net and VAE as modules.",
    "trt_native.models.lora": "LoRA adapters in engines of U-Nets.",
    "trt_native.progress": "The protocol of progress callbacks.",
    "trt_native.progress_bars": "What may be given as `progress`, and bars.",
    "trt_native.errors": "The exceptions.",
    "trt_native.units": "Sizes and durations as text.",
    "trt_native.passes.base": "The base of passes over a graph.",
    "trt_native.backends.base": "The protocol of a TensorRT, and its capabilities.",
}
"""What the API reference documents, in its order, with a line on each."""

_INTRODUCTION = """\
# API reference

Generated from the public names (`__all__`) of these modules and their docstrings. Other modules are
internal, and may change in any release; so may `trt_native.passes.base` and
`trt_native.backends.base`, which are for changing this package.

| module | content |
|---|---|
"""


def exports(module: str) -> list[str]:
    """The public names of a module."""
    return list(importlib.import_module(module).__all__)


def api_pages() -> dict[str, str]:
    """The Markdown of each page by its path: an index, and a page for each module.

    A name of the root package is documented there, and only linked from the module it is from.
    """
    rows = "".join(
        f"| [`{module}`]({module}.md) | {text} |\n" for module, text in PUBLIC_MODULES.items()
    )
    pages = {"api/index.md": _INTRODUCTION + rows}
    for module in PUBLIC_MODULES:
        pages[f"api/{module}.md"] = _page(module)
    return pages


def _page(module: str) -> str:
    root = trt_native.__all__ if module != "trt_native" else ()
    names = [name for name in exports(module) if name != "__version__"]
    here = [name for name in names if name not in root]
    linked = [f"[`{name}`][trt_native.{name}]" for name in names if name in root]
    parts = [
        f"# `{module}`\n",
        f"::: {module}\n    options:\n      members: []\n      show_root_heading: false\n",
    ]
    if linked:
        parts.append(f"See also {', '.join(linked)}.\n")
    parts += [f"::: {module}.{name}\n" for name in here]
    return "\n".join(parts)
