"""Builds of a dynamic model with a backend."""

from __future__ import annotations

import threading

DYNAMIC = {"x": "1x3x8x8:2x3x8x8:4x3x16x16"}


def build(backend, request, progress=None):
    return backend.build(request, progress, threading.Event())
