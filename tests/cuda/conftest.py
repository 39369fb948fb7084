"""Fixtures for what needs no GPU."""

from helpers.fake_driver import blocks, driver

__all__ = ["blocks", "driver"]
