"""PyTorch modules of many kinds, each with an example, dynamic axes, and a call of other shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as f


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8))

    def forward(self, x):
        return self.layers(x)


class CNN(nn.Module):
    """Convolutions with batch norms, whose statistics are buffers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        return self.head(self.features(images).flatten(1))


class ViT(nn.Module):
    """Patches, a class token, encoder blocks with attention."""

    def __init__(self, size=32, patch=8, width=48):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 96, activation="gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        return self.head(self.blocks(tokens)[:, 0])


class Recurrent(nn.Module):
    """Returns all states and, in a tuple, the last ones."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(12, 24, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x):
        states, (hidden, cell) = self.lstm(x)
        return states, (hidden, cell)


class UNet(nn.Module):
    """Down and up once, with a skip connection and a time embedding."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(4, 16, 3, padding=1)
        self.time = nn.Linear(16, 32)
        self.down = nn.Conv2d(16, 32, 3, 2, 1)
        self.norm = nn.GroupNorm(8, 32)
        self.middle = nn.Conv2d(32, 32, 3, padding=1)
        self.up = nn.Conv2d(32, 16, 3, padding=1)
        self.leave = nn.Conv2d(32, 4, 3, padding=1)
        self.register_buffer("frequencies", torch.exp(-torch.arange(8) / 2), persistent=False)

    def forward(self, sample, timestep):
        angles = timestep[:, None].float() * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        first = self.enter(sample)
        inner = f.silu(self.norm(self.down(first)) + time[:, :, None, None])
        wide = f.interpolate(f.silu(self.middle(inner)), scale_factor=2.0)
        return self.leave(torch.cat([first, self.up(wide)], 1))


class Dicts(nn.Module):
    """A dictionary in, another out, nested."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, batch):
        left, right = self.left(batch["features"]["left"]), self.right(batch["features"]["right"])
        return {"sum": left + right, "parts": {"left": left, "right": right}, "count": 2}


@dataclasses.dataclass
class Request:
    tokens: torch.Tensor
    mask: torch.Tensor
    scale: float = 1.0
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    logits: torch.Tensor
    hidden: list[torch.Tensor]
    loss: torch.Tensor | None = None


class Dataclasses(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)

    def forward(self, request):
        hidden = self.embedding(request.tokens) * request.mask[..., None] * request.scale
        return Answer(self.head(torch.tanh(hidden)), [hidden, hidden.mean(1)])


class Keywords(nn.Module):
    """Positional and keyword arguments, flags that choose branches, and further tensors."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, /, y, *rest, mode="add", power=1, mask=None, **extra):
        found = x + y if mode == "add" else x * y
        for one in (*rest, *extra.values()):
            found = found + self.linear(one)
        if mask is not None:
            found = found * mask
        return found**power


class ShapeBranches(nn.Module):
    """Code that depends on extents: a loop, a padding where one is odd, a branch."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        if x.shape[1] % 2:
            x = f.pad(x, (0, 0, 0, 1))
        for index in range(x.shape[1] // 2):
            x = x + self.steps[index % 4](x)
        return x.flatten(1) if x.dim() == 3 else x


class Pair(NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor


class Lists(nn.Module):
    """A list of tensors in, a named tuple out; one weight is used transposed, too."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, parts, weights):
        weighted = zip(parts, weights, strict=True)
        stacked = torch.stack([self.linear(part) * weight for part, weight in weighted])
        back = stacked.mean(0) @ self.linear.weight
        return Pair(back, stacked.std(0))


@dataclasses.dataclass(frozen=True)
class Case:
    """A module and its calls.

    Attributes:
        make: Makes the module.
        inputs: The positional arguments, for an extent of the dynamic dimension.
        kwargs: The keyword arguments, likewise.
        dynamic: The dynamic axes.
        extents: Extents of it to call the module with; the first is the example's.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    kwargs: Callable[[int], dict[str, Any]] = lambda _: {}
    dynamic: Mapping[str, Mapping[int, str]] = dataclasses.field(default_factory=dict)
    extents: tuple[int, ...] = (2, 1, 4)

    def module(self, seed=0):
        torch.manual_seed(seed)
        module = self.make().eval()
        for part in module.modules():  # weights and statistics that are not all the same
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
                nn.init.normal_(part.weight, 1, 0.2)
                nn.init.normal_(part.bias, 0, 0.2)
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean, 0, 0.2)
                nn.init.uniform_(part.running_var, 0.5, 2)
        return module

    def call(self, extent=None, device="cpu"):
        """Positional and keyword arguments, as tensors on a device."""
        torch.manual_seed(extent or 0)
        n = self.extents[0] if extent is None else extent
        return moved(self.inputs(n), device), moved(self.kwargs(n), device)


def moved(value, device):
    """A value with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(item, device) for item in value)
    if dataclasses.is_dataclass(value):
        fields = {f.name: moved(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        return type(value)(**fields)
    return value


def tensors_in(value):
    """The tensors in a value, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [one for item in value for one in tensors_in(item)]
        if isinstance(value, (tuple, list))
        else []
    )


def same_structure(one, other):
    """Whether two values have the same containers, keys and constants."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        return all(
            same_structure(getattr(one, field.name), getattr(other, field.name))
            for field in dataclasses.fields(one)
        )
    if isinstance(one, dict):
        return [*one] == [*other] and all(same_structure(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same_structure, one, other))
    return one == other


def _random(*shape):
    return torch.randn(*shape)


BATCH = "batch=1:2:4"

CASES = {
    "mlp": Case(MLP, lambda n: (_random(n, 16),), dynamic={"x": {0: BATCH}}),
    "cnn": Case(CNN, lambda n: (_random(n, 3, 16, 16),), dynamic={"images": {0: BATCH}}),
    "vit": Case(ViT, lambda n: (_random(n, 3, 32, 32),), dynamic={"x": {0: BATCH}}),
    "lstm": Case(Recurrent, lambda n: (_random(n, 7, 12),), dynamic={"x": {0: BATCH}}),
    "unet": Case(
        UNet,
        lambda n: (_random(n, 4, 16, 16), torch.arange(n) * 7 + 1),
        dynamic={"sample": {0: BATCH}, "timestep": {0: "batch"}},
    ),
    "dicts": Case(
        Dicts,
        lambda n: ({"features": {"left": _random(n, 8), "right": _random(n, 8)}},),
        dynamic={"batch_features_left": {0: BATCH}, "batch_features_right": {0: "batch"}},
    ),
    "dataclasses": Case(
        Dataclasses,
        lambda n: (
            Request(torch.randint(0, 50, (n, 6)), torch.randint(0, 2, (n, 6)).float(), 0.5, "a"),
        ),
        dynamic={"request_tokens": {0: BATCH}, "request_mask": {0: "batch"}},
    ),
    "keywords": Case(
        Keywords,
        lambda n: (_random(n, 8), _random(n, 8), _random(n, 8)),
        lambda n: {"mode": "multiply", "power": 2, "mask": _random(n, 1), "bias": _random(n, 8)},
        dynamic={
            "x": {0: BATCH}, "y": {0: "batch"}, "rest_0": {0: "batch"}, "mask": {0: "batch"},
            "bias": {0: "batch"},
        },
    ),
    "shapes": Case(ShapeBranches, lambda n: (_random(n, 5, 8),), dynamic={"x": {0: BATCH}}),
    "lists": Case(
        Lists,
        lambda n: ([_random(n, 8), _random(n, 8), _random(n, 8)], (0.5, 1.0, 2.0)),
        dynamic={f"parts_{i}": {0: BATCH} for i in range(3)},
    ),
}  # fmt: skip
