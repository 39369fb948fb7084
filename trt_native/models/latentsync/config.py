"""The U-Net's configuration, as the ``model:`` section of LatentSync's YAML files has it."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from trt_native.errors import SpecError
from trt_native.files import parse_yaml, read_text_file

__all__ = ["UNET_PRESETS", "MotionConfig", "UNetConfig"]

# In YAML a short text may stand for a list of a million million entries.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2

# Far above any model of this structure, and far below what takes a machine's memory.
_MOST = 2**16
_MOST_BLOCKS = 64
_BLOCK_COUNTS = ("layers_per_block", "motion_module_kwargs.num_transformer_block")

DOWN_BLOCKS = ("CrossAttnDownBlock3D", "DownBlock3D")
UP_BLOCKS = ("CrossAttnUpBlock3D", "UpBlock3D")

# Keys of the original whose other values this U-Net does not implement: (accepted values).
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock3DCrossAttn",),
    "downsample_padding": (1,),
    "resnet_time_scale_shift": ("default",),
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "use_linear_projection": (False,),
    "upcast_attention": (False,),
    "use_inflated_groupnorm": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "motion_module_type": ("Vanilla", None),
    # Of LatentSync 1.0 only.
    "custom_audio_layer": (False,),
    "audio_condition_method": ("cross_attn",),
    "unet_use_cross_frame_attention": (False,),
    "unet_use_temporal_attention": (False,),
}
_FIXED_MOTION: dict[str, tuple[Any, ...]] = {
    "cross_frame_attention_mode": (None,),
    "zero_initialize": (True, False),  # a matter of training only
}


@dataclass(frozen=True)
class MotionConfig:
    """The ``motion_module_kwargs``: how the temporal transformers are built.

    Attributes:
        num_attention_heads: Heads of every temporal attention.
        num_transformer_block: Transformer blocks per motion module.
        attention_block_types: One ``"Temporal_Self"`` per attention of a block.
        temporal_position_encoding: Whether positions are added to the frames.
        temporal_position_encoding_max_len: Number of positions, the limit on frames.
        temporal_attention_dim_div: Divisor of the channels inside the module.
    """

    num_attention_heads: int = 8
    num_transformer_block: int = 1
    attention_block_types: tuple[str, ...] = ("Temporal_Self", "Temporal_Self")
    temporal_position_encoding: bool = True
    temporal_position_encoding_max_len: int = 24
    temporal_attention_dim_div: int = 1

    def inner_channels(self, channels: int) -> int:
        """Channels inside a motion module that takes and gives ``channels``."""
        heads = self.num_attention_heads
        return channels // heads // self.temporal_attention_dim_div * heads


@dataclass(frozen=True)
class UNetConfig:
    """Everything that decides the U-Net's structure. The defaults are LatentSync 1.6 and 1.5.

    Attributes:
        sample_size: Latent height and width the model was trained for.
        in_channels: Channels of ``latents``.
        out_channels: Channels of ``noise_pred``.
        center_input_sample: Whether inputs are mapped from [0, 1] to [-1, 1] first.
        flip_sin_to_cos: Whether the timestep's cosines come before its sines.
        freq_shift: Shift of the timestep's frequencies.
        down_block_types: Per level, outermost first.
        up_block_types: Per level, innermost first.
        block_out_channels: Channels per level, outermost first.
        layers_per_block: ResNet blocks per level on the way down; one more on the way up.
        mid_block_scale_factor: Divisor of the mid block's residual sums.
        norm_num_groups: Groups of every GroupNorm outside the motion modules.
        norm_eps: Epsilon of the cross-frame GroupNorms.
        cross_attention_dim: Channels of the audio features.
        attention_head_dim: *Number* of attention heads (the original's name), one for all levels
            or one per level.
        use_motion_module: Whether there are motion modules at all.
        motion_module_resolutions: Downsampling factors that have them.
        motion_module_mid_block: Whether the mid block has one too.
        motion_module_decoder_only: Whether the way down has no motion modules.
        motion_module_kwargs: Structure of the motion modules.
        add_audio_layer: Whether the transformers attend to the audio.

    Raises:
        SpecError: values contradict each other; all problems in one error.
    """

    sample_size: int | None = 64
    in_channels: int = 13
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*(("CrossAttnDownBlock3D",) * 3), "DownBlock3D")
    up_block_types: tuple[str, ...] = ("UpBlock3D", *(("CrossAttnUpBlock3D",) * 3))
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 384
    attention_head_dim: int | tuple[int, ...] = 8
    use_motion_module: bool = True
    motion_module_resolutions: tuple[int, ...] = (1, 2, 4, 8)
    motion_module_mid_block: bool = False
    motion_module_decoder_only: bool = False
    motion_module_kwargs: MotionConfig = field(default_factory=MotionConfig)
    add_audio_layer: bool = True

    def __post_init__(self) -> None:
        problems = _length_problems(self) or [*_count_problems(self), *_level_problems(self)]
        problems = problems or _divisor_problems(self)
        _raise_problems(problems)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads per level, outermost first."""
        heads = self.attention_head_dim
        return (heads,) * len(self.block_out_channels) if isinstance(heads, int) else heads

    @property
    def max_frames(self) -> int | None:
        """The most frames the motion modules have positions for; None without a limit."""
        motion = self.motion_module_kwargs
        limited = self.use_motion_module and motion.temporal_position_encoding
        return motion.temporal_position_encoding_max_len if limited else None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> UNetConfig:
        """Read the ``model:`` section of a LatentSync configuration.

        Missing keys take their defaults. Keys of the original that this U-Net does not implement
        are accepted with their usual values. Numbers may come as text, as YAML 1.1 readers
        deliver ``1e-5``.

        Raises:
            SpecError: keys are unknown, or values have a wrong type or are not supported; all
                problems in one error.
        """
        if not isinstance(mapping, Mapping):
            raise SpecError(f"a U-Net configuration is a mapping, found {type(mapping).__name__}")
        problems: list[str] = []
        values = _read_fields(cls, mapping, _FIXED, "", problems)
        _raise_problems(problems)
        return cls(**values)

    @classmethod
    def load(cls, source: str | Path) -> UNetConfig:
        """Read a preset (a key of :data:`UNET_PRESETS`) or a YAML or JSON file.

        A file holds the section itself, or has it under ``model:`` as LatentSync's files do.

        Raises:
            SpecError: the preset or file does not exist, or does not hold a configuration.
        """
        if str(source) in UNET_PRESETS:
            return UNET_PRESETS[str(source)]
        path = Path(source)
        data = _parse_file(path)
        if isinstance(data, Mapping) and isinstance(data.get("model"), Mapping):
            data = data["model"]
        try:
            return cls.from_mapping(data)
        except SpecError as error:
            raise error.restated(f"{path}: {error.message}", SpecError) from None

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON can hold it; :meth:`from_mapping` reads it back."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data


def _parse_file(path: Path) -> Any:
    try:
        text = read_text_file(path).decode()
        if path.suffix.lower() == ".json":
            return json.loads(text)
        return parse_yaml(text)
    except FileNotFoundError:
        presets = ", ".join(UNET_PRESETS)
        raise SpecError(f"{path}: no such file, and not a preset either ({presets})") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, YAMLError) as error:  # also text that is not UTF-8
        reason = " ".join(str(error).split())
        raise SpecError(f"{path}: not valid YAML or JSON: {reason}") from None


def _raise_problems(problems: list[str]) -> None:
    if problems:
        raise SpecError(f"the U-Net configuration is not usable: {'; '.join(problems)}")


def _read_fields(
    cls: type[Any],
    mapping: Mapping[str, Any],
    fixed: Mapping[str, tuple[Any, ...]],
    where: str,
    problems: list[str],
) -> dict[str, Any]:
    """The mapping's values by field, converted; those that do not fit go to ``problems``."""
    types = {item.name: str(item.type) for item in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key in types:
            try:
                values[key] = _READERS[types[key]](value, problems)
            except (TypeError, ValueError, OverflowError):
                found = _SHORT.repr(value)
                problems.append(f"{where}{key} needs {_WORDS[types[key]]}, found {found}")
        elif key not in fixed:
            problems.append(f"{where}{key} is not a known key")
        elif value not in fixed[key]:
            known = " or ".join(repr(choice) for choice in fixed[key])
            problems.append(f"{where}{key}={_SHORT.repr(value)} is not supported, only {known}")
    return values


def _whole(value: Any, _problems: list[str]) -> int:
    number = float(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number != int(number):
        raise TypeError
    return int(number)


def _real(value: Any, _problems: list[str]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


def _flag(value: Any, _problems: list[str]) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _many(value: Any, read: Callable[[Any], Any]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(read(item) for item in value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _wholes(value: Any, problems: list[str]) -> tuple[int, ...]:
    return _many(value, lambda item: _whole(item, problems))


def _motion(value: Any, problems: list[str]) -> MotionConfig:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError
    where = "motion_module_kwargs."
    return MotionConfig(**_read_fields(MotionConfig, value or {}, _FIXED_MOTION, where, problems))


_READERS: dict[str, Callable[[Any, list[str]], Any]] = {
    "int": _whole,
    "int | None": lambda value, problems: None if value is None else _whole(value, problems),
    "int | tuple[int, ...]": lambda value, problems: (
        _wholes(value, problems) if isinstance(value, list | tuple) else _whole(value, problems)
    ),
    "float": _real,
    "bool": _flag,
    "tuple[int, ...]": _wholes,
    "tuple[str, ...]": lambda value, _problems: _many(value, _text),
    "MotionConfig": _motion,
}
_WORDS = {
    "int": "a whole number",
    "int | None": "a whole number or null",
    "int | tuple[int, ...]": "a whole number or a list of them",
    "float": "a number",
    "bool": "true or false",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[str, ...]": "a list of names",
    "MotionConfig": "a mapping",
}


def _length_problems(config: UNetConfig) -> list[str]:
    """List the lists that are too long for any model."""
    motion = config.motion_module_kwargs
    lengths = {
        "block_out_channels": len(config.block_out_channels),
        "attention_head_dim": len(config.heads),
        "motion_module_kwargs.attention_block_types": len(motion.attention_block_types),
    }
    return [
        f"{name} has {length} entries, at most {_MOST_BLOCKS} are possible"
        for name, length in lengths.items()
        if length > _MOST_BLOCKS
    ]


def _count_problems(config: UNetConfig) -> list[str]:
    """List the numbers that are not between 1 and the most that is possible."""
    motion = config.motion_module_kwargs
    values = {
        **{f"block_out_channels[{i}]": n for i, n in enumerate(config.block_out_channels)},
        **{f"attention_head_dim[{i}]": n for i, n in enumerate(config.heads)},
    }
    for owner, where in ((config, ""), (motion, "motion_module_kwargs.")):
        for item in dataclasses.fields(owner):
            if str(item.type) == "int" and item.name != "freq_shift":
                values[where + item.name] = getattr(owner, item.name)
    if config.sample_size is not None:
        values["sample_size"] = config.sample_size
    problems = [f"{name} must be at least 1, found {n}" for name, n in values.items() if n < 1]
    for name, number in (*values.items(), ("freq_shift", abs(config.freq_shift))):
        most = _MOST_BLOCKS if name in _BLOCK_COUNTS else _MOST
        if number > most:
            problems.append(f"{name} must be at most {most}, found {_SHORT.repr(number)}")
    for name, real, highest in (
        ("norm_eps", config.norm_eps, 1.0),
        ("mid_block_scale_factor", config.mid_block_scale_factor, 1e6),
    ):
        if not 1e-30 <= real <= highest:
            problems.append(f"{name} must be above 0 and at most {highest:g}, found {real}")
    return problems


def _level_problems(config: UNetConfig) -> list[str]:
    levels = len(config.block_out_channels)
    problems = [] if levels else ["block_out_channels is empty"]
    for name in ("down_block_types", "up_block_types", "heads"):
        if (found := len(getattr(config, name))) != levels:
            shown = "attention_head_dim" if name == "heads" else name
            problems.append(f"{shown} has {found} entries, block_out_channels has {levels}")
    choices = (
        ("down_block_types", config.down_block_types, DOWN_BLOCKS),
        ("up_block_types", config.up_block_types, UP_BLOCKS),
        (
            "motion_module_kwargs.attention_block_types",
            config.motion_module_kwargs.attention_block_types,
            ("Temporal_Self",),
        ),
    )
    for name, found_types, known in choices:
        if unknown := sorted(set(found_types) - set(known)):
            problems.append(f"{name} has {', '.join(unknown)}, only {' or '.join(known)} is known")
    return problems


def _divisor_problems(config: UNetConfig) -> list[str]:
    """List the channel counts that the groups or heads do not divide."""
    problems = []
    if config.block_out_channels[0] % 2:
        problems.append("block_out_channels[0] must be even, for sines and cosines")
    elif config.freq_shift >= config.block_out_channels[0] // 2:
        problems.append(
            f"freq_shift must be below block_out_channels[0] / 2, found {config.freq_shift}"
        )
    divisors = {"norm_num_groups": config.norm_num_groups}
    motion = config.motion_module_kwargs
    if config.use_motion_module:
        # Its norms have 32 groups, regardless of norm_num_groups.
        divisors["the motion modules' 32 groups"] = 32
        divisors["their heads"] = motion.num_attention_heads * motion.temporal_attention_dim_div
    for channels, heads in zip(config.block_out_channels, config.heads, strict=True):
        problems += [
            f"{channels} channels are not divisible by {name} ({divisor})"
            for name, divisor in {**divisors, "attention_head_dim": heads}.items()
            if channels % divisor
        ]
        if config.max_frames is not None and motion.inner_channels(channels) % 2:
            problems.append(
                f"motion modules of {channels} channels have an odd number inside, which positions"
                " do not allow"
            )
    return problems


UNET_PRESETS: Mapping[str, UNetConfig] = {
    "latentsync-1.6": UNetConfig(),
    "latentsync-1.5": UNetConfig(),
    "latentsync-1.0": UNetConfig(
        use_motion_module=False,
        motion_module_kwargs=MotionConfig(temporal_position_encoding_max_len=16),
    ),
    "small": UNetConfig(
        sample_size=16,
        block_out_channels=(32, 32, 64, 32),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        motion_module_kwargs=MotionConfig(num_attention_heads=4),
    ),
}
"""Configurations known by name: the published models, and a tiny one of the same structure.

1.5 and 1.6 differ in their weights alone: 1.5 is trained on 256 x 256 pixels, 1.6 on 512 x 512.
"""
