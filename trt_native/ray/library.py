"""Import of Ray and fsspec, which are optional, and the connection to a cluster."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trt_native.errors import SpecError, UnsupportedError
from trt_native.installing import install_command

__all__ = ["connected", "import_optional"]

_CONNECT_S = 10.0
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable with which Ray, at 0, listens on the loopback interface alone, on any system."""


def import_optional(name: str) -> Any:
    """Import a module of the extra ``ray``.

    Args:
        name: Its name, such as ``ray.data``.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(
            f"{name} cannot be imported ({error}); install the extra trt-native[ray]:"
            f" {install_command('ray')}"
        ) from None


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a Ray cluster for the time of a block, unless this process is connected already.

    Args:
        address: As for ``ray.init``: ``auto`` or ``HOST:PORT``. None: start a Ray on this
            machine alone, and end it with the block.

    Yields:
        The module ``ray``.

    Raises:
        UnsupportedError: Ray is not installed, or there is no cluster at the address.
        SpecError: this process is connected to a cluster, and there is an address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "ray" not in sys.modules:  # it reads this one when it is imported
            os.environ.setdefault(_LOOPBACK, "0")
    ray = import_optional("ray")
    if ray.is_initialized():
        if address not in (None, "auto"):
            raise SpecError(
                f"this process is connected to a Ray already: give no address, not {address!r}",
                options=("address",),
            )
        yield ray
        return
    with _own_handler():
        _start(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces with one that ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # else it is not one of Python's
            signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str) -> None:
    """Check that something listens at an address, for which Ray would wait for minutes.

    Raises:
        UnsupportedError: nothing does.
    """
    found = re.fullmatch(r"([^/\s]+):(\d{1,5})", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnsupportedError(
            f"no Ray at {address!r}: {reason}; start one with `ray start`", options=("address",)
        ) from None


def _start(ray: Any, address: str | None) -> None:
    if address is not None:
        _check_reachable(address)
    own = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(
            address="local" if address is None else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **own,
        )
    except Exception as error:  # it has many kinds
        where = "no Ray could be started here" if address is None else f"no Ray at {address!r}"
        reason = " ".join(str(error).split())
        raise UnsupportedError(
            f"{where}: {reason}; start one with `ray start`, with the versions of Ray and Python"
            " of this environment",
            options=("address",),
        ) from None
