"""Commands that install what is lacking."""

from __future__ import annotations

__all__ = ["EXTRAS", "install_command"]

EXTRAS = {
    "rtx": ("tensorrt-rtx>=1.4,<2",),
    "tensorrt": ("tensorrt>=10.3,<11",),
    "tensorrt11": ("tensorrt>=11,<12",),
    "openvino": ("openvino>=2026.4,<2026.5",),
    "ray": ("ray[data]>=2.60,<3", "fsspec>=2024.2"),
    "export": ("torch>=2.9", "onnxscript>=0.5"),
}
"""Packages that an extra of this one installs, which are in the index wherever this one is from."""


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra."""
    return " ".join(("pip install", *(f"'{package}'" for package in EXTRAS[extra])))
