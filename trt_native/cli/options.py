"""Command-line options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["IgnoreManifest"]

IgnoreManifest = Annotated[
    bool,
    typer.Option(
        "--no-manifest/--manifest",
        help="Ignore the manifest stored next to the plan, or use it.",
    ),
]
