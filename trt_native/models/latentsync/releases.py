"""Differences of the released checkpoints from the U-Net as its latest release has it."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from trt_native.models.latentsync.config import UNetConfig

__all__ = ["current_names", "without_absent_motion"]

_NAME_OF_1_0 = re.compile(r"(?<=\.)audio_cross_attn\.(norm|attn)(?=\.)")
_MOTION_MODULE = re.compile(r"(down|mid|up)_blocks?\.?(\d*)\.motion_modules\.")
_logger = logging.getLogger(__name__)

T = TypeVar("T")


def current_names(state_dict: Mapping[str, T]) -> dict[str, T]:
    """The state dict under today's names of what LatentSync 1.0 named differently.

    A name of 1.0 beside today's name of the same weight is left as it is.
    """
    found = {name: _NAME_OF_1_0.sub(r"\g<1>2", name) for name in state_dict}
    return {name if new in state_dict else new: state_dict[name] for name, new in found.items()}


def without_absent_motion(config: UNetConfig, names: Collection[str]) -> UNetConfig:
    """The configuration without the motion modules that a checkpoint does not have, with a warning.

    LatentSync's own module starts with motion modules that add zero, so those that its
    checkpoint lacks change nothing.

    Args:
        config: The configuration.
        names: Names of the checkpoint's weights.
    """
    found = _with_motion_of(config, names)
    if found != config:
        _logger.warning(
            "the checkpoint has no weights for %s motion modules: they are left out, which changes"
            " nothing, as they start out adding zero",
            "some of the" if found.use_motion_module else "the",
        )
    return found


def _with_motion_of(config: UNetConfig, names: Collection[str]) -> UNetConfig:
    if not config.use_motion_module:
        return config
    found = {part.groups() for name in names if (part := _MOTION_MODULE.match(name))}
    last = len(config.block_out_channels) - 1
    absent = {2**level for level in range(last + 1) if ("up", str(last - level)) not in found}
    levels = tuple(n for n in config.motion_module_resolutions if n not in absent)
    in_middle = config.motion_module_mid_block and ("mid", "") in found
    if not levels and not in_middle:
        return replace(config, use_motion_module=False)
    only_up = config.motion_module_decoder_only or not any(part == "down" for part, _ in found)
    return replace(
        config,
        motion_module_resolutions=levels,
        motion_module_mid_block=in_middle,
        motion_module_decoder_only=only_up,
    )
