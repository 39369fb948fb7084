"""Registration of plugins with TensorRT, each once in a process."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from trt_native.backends.callbacks import Log
from trt_native.calibration.sources import load_function
from trt_native.errors import USER_CODE_ERRORS, PlanError, TrtNativeError
from trt_native.plans.plugins import is_python_plugin

__all__ = ["PluginLoader"]

_LOGGER = logging.getLogger(__name__)


class PluginLoader:
    """Registers plugins with one TensorRT library.

    Args:
        trt: The module.
        log: Its log.
        product: Name and version, for errors.
    """

    def __init__(self, trt: Any, log: Log, product: str) -> None:
        self._trt = trt
        self._log = log
        self._product = product
        self._loaded: dict[str, Any] = {}
        self._has_standard = False
        self._runtime: Any = None

    def _load_standard(self) -> None:
        """Register the plugins that come with TensorRT, which models and plans may name."""
        if self._has_standard:
            return
        self._has_standard = True
        with self._log.collect_errors() as errors:
            # The log of the registry, which has none without such an object.
            self._runtime = self._trt.Runtime(self._log.tensorrt_logger)
            found = self._trt.init_libnvinfer_plugins(self._log.tensorrt_logger, "")
        if not found:  # what needs none of them works all the same
            _LOGGER.info("%s has no plugins of its own: %s", self._product, "; ".join(errors))

    def load(self, sources: Sequence[str]) -> None:
        """Register TensorRT's own plugins, those of libraries, and those of Python functions.

        Args:
            sources: Paths of libraries, ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``. A
                function is called without arguments, and registers plugins as the decorators of
                ``tensorrt.plugin`` do, or with TensorRT's registry.

        Raises:
            PlanError: one cannot be loaded; its log, or the function's error, is attached.
        """
        self._load_standard()
        for source in sources:
            if is_python_plugin(source):
                self._call(source)
            else:
                self._load_library(source)

    def _load_library(self, source: str) -> None:
        path = os.path.realpath(source)
        if path in self._loaded:
            return
        with self._log.collect_errors() as errors:
            handle = self._trt.get_plugin_registry().load_library(path)
        if handle is None:
            raise PlanError(
                f"{self._product} cannot load the plugins of {source}: it must be a library of"
                " plugins for this version, none of which is registered already",
                [line for line in errors if "catchCudaError" not in line],
                options=("plugins",),
            )
        self._loaded[path] = handle
        _LOGGER.info("plugins of %s are registered", source)

    def _call(self, source: str) -> None:
        if source in self._loaded:
            return
        try:
            with self._log.collect_errors() as errors:
                load_function(source)()
        except TrtNativeError as error:
            raise PlanError(
                f"plugin {error.message}", error.details, options=("plugins",)
            ) from None
        except USER_CODE_ERRORS as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PlanError(
                f"plugin {source} raised {reason}", errors, options=("plugins",)
            ) from error
        self._loaded[source] = None  # nothing to hold
        _LOGGER.info("plugins of %s are registered", source)
