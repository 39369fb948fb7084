"""Models that TensorRT's ONNX parser misreads, with what they stand for by NumPy and PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from onnx import helper, numpy_helper, parser


class Case(NamedTuple):
    """A model of one misread node.

    Attributes:
        model: The model.
        operator: The node's operator.
        inputs: Values for its inputs.
        expected: Its outputs.
    """

    model: object
    operator: str
    inputs: dict
    expected: list

    @property
    def dims(self):
        """The ranges of a batch, whose optimum is 1, and of a length that are not fixed."""
        ranges = {"n": "n=1:1:3", "l": "l=4:9:12"}
        dims = self.model.graph.input[0].type.tensor_type.shape.dim
        return [ranges[dim.dim_param] for dim in dims if dim.dim_param]


def _case(operator, inputs, expected, *, constants=None, opset=18, before=(), **attributes):
    """The order of inputs is that of ``before``, of the inputs, and of the constants."""
    constants = constants or {}
    outputs = [f"y{index}" for index in range(len(expected))]
    names = [*inputs, *constants] if not before else list(before)
    kinds = {name: helper.np_dtype_to_tensor_dtype(v.dtype) for name, v in inputs.items()}
    kind = next(iter(kinds.values()))
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, name="node", **attributes)],
        "misread",
        [helper.make_tensor_value_info(n, kinds[n], v.shape) for n, v in inputs.items()],
        [
            helper.make_tensor_value_info(n, kind, e.shape)
            for n, e in zip(outputs, expected, strict=True)
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return Case(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), operator, inputs, expected
    )


def _draw(*shape, kind=np.float32):
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32).astype(kind)


def readable(model):
    """The model as onnx's reference reads it, which knows a cubic GridSample by its newer name."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "GridSample" and attribute.s == b"bicubic":
                attribute.s = b"cubic"
    return model


def _triangle():
    x = _draw(2, 5, 4)
    return _case("Trilu", {"x": x}, [np.triu(x)], opset=14)


def _mean(kind=np.float32):
    a, b, c = _draw(2, 1, 4, kind=kind), _draw(3, 4, kind=kind), _draw(4, kind=kind)
    mean = ((a.astype(np.float64) + b + c) / 3).astype(kind)
    return _case("Mean", {"a": a, "b": b, "c": c}, [mean], opset=13)


def _half_mean():
    return _mean(np.float16)


def _single_mean():
    x = _draw(2, 3, 4, kind=np.float16)
    return _case("Mean", {"x": x}, [x], opset=13)


def _transposed_pixel(extents, kernel, strides, kind=np.float32, **options):
    """Axes of one element, whose stride says nothing."""
    rank = len(extents)
    x, w = _draw(2, 3, *extents, kind=kind), _draw(3, 4, *kernel, kind=kind)
    b = np.linspace(-1, 1, 4).astype(kind)
    convolve = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    wide = (torch.tensor(array.astype(np.float64)) for array in (x, w, b))
    expected = convolve(*wide, stride=strides, **options).numpy().astype(kind)
    attributes = {"pads": list(options["padding"]) * 2} if "padding" in options else {}
    if "output_padding" in options:
        attributes["output_padding"] = list(options["output_padding"])
    return _case(
        "ConvTranspose", {"x": x}, [expected], constants={"w": w, "b": b}, strides=strides,
        kernel_shape=kernel, **attributes,
    )  # fmt: skip


def _pool():
    x = _draw(2, 3, 4, 5)
    summed = (np.abs(x) ** 3).sum((2, 3), keepdims=True) ** (1 / 3)
    return _case("GlobalLpPool", {"x": x}, [summed.astype(np.float32)], p=3)


def _reduction(operator, each):
    x = np.abs(_draw(3, 4)) + 0.5 if operator == "ReduceLogSum" else _draw(3, 4)
    return _case(operator, {"x": x}, [each(x)], noop_with_empty_axes=1)


def _logarithm(opset, **attributes):
    x = _draw(3, 4, 5) * 60
    x[0, :, 0], x[1, 0, 1] = -np.inf, np.inf
    x[2, 0] = 100
    expected = torch.logsumexp(torch.tensor(x), 1, attributes.get("keepdims", 1) == 1).numpy()
    axes = {"axes": np.array([1])} if opset >= 18 else {}
    attributes |= {} if axes else {"axes": [1]}
    return _case("ReduceLogSumExp", {"x": x}, [expected], constants=axes, opset=opset, **attributes)


def _limits():
    x = _draw(4, 4)
    ends = {"low": np.array(3, np.float32), "high": np.array(1, np.float32)}
    return _case("Clip", {"x": x}, [np.ones_like(x)], constants=ends)


def _average(pads):
    x = _draw(1, 2, 6, 7)
    pool = torch.nn.AvgPool2d(3, 2, pads, ceil_mode=True, count_include_pad=True)
    options = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [pads] * 4}
    expected = pool(torch.tensor(x)).numpy()
    return _case("AveragePool", {"x": x}, [expected], ceil_mode=1, count_include_pad=1, **options)


def _ceil_pool(operator, extents, kernel, stride, pad, opset, **options):
    """A last window that starts in the padding is left out."""
    x = _draw(1, 2, *extents)
    rank = len(extents)
    pools = {"MaxPool": "max_pool", "AveragePool": "avg_pool"}
    pool = getattr(torch.nn.functional, f"{pools[operator]}{rank}d")
    counted = {"count_include_pad": bool(options.get("count_include_pad"))}
    expected = pool(
        torch.tensor(x), kernel, stride, pad, ceil_mode=True,
        **(counted if operator == "AveragePool" else {}),
    ).numpy()  # fmt: skip
    options |= {"kernel_shape": [kernel] * rank, "strides": [stride] * rank}
    options["pads"] = [pad] * 2 * rank
    return _case(operator, {"x": x}, [expected], opset=opset, ceil_mode=1, **options)


def _valid_pool(operator):
    x = _draw(1, 2, 6, 8)
    pool = {"MaxPool": "max_pool2d", "AveragePool": "avg_pool2d"}[operator]
    expected = getattr(torch.nn.functional, pool)(torch.tensor(x), 3, 2).numpy()
    options = {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID", "ceil_mode": 1}
    return _case(operator, {"x": x}, [expected], opset=22, **options)


def _resized(scale, extent, mode, coordinates, **options):
    """Sizes that FP32 makes one larger than the product is."""
    x = _draw(1, 2, extent, 3)
    scales = np.array([1, 1, scale, 1], np.float32)
    kind = "bilinear" if mode == "linear" else mode
    align = {} if mode == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(
        torch.tensor(x), scale_factor=(scale, 1.0), mode=kind, **align
    ).numpy()
    options |= {"mode": mode, "coordinate_transformation_mode": coordinates}
    names = ["x", "", "scales"]
    return _case(
        "Resize", {"x": x}, [expected], constants={"scales": scales}, before=names, **options
    )


def _transposed(rank):
    x, w = _draw(1, 2, *[5] * rank), _draw(2, 3, *[3] * rank)
    conv = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    y = conv(torch.tensor(x), torch.tensor(w), stride=2, output_padding=1).numpy()
    options = {"strides": [2] * rank, "output_padding": [1] * rank, "auto_pad": "VALID"}
    return _case("ConvTranspose", {"x": x}, [y], constants={"w": w}, opset=22, **options)


def _groups_of_before():
    """With a scale for each group, of which there is one."""
    x = _draw(2, 6, 3, 5)
    x[:, 0] += 4
    scale, bias = np.array([1.5], np.float32), np.array([-0.5], np.float32)
    normed = torch.nn.functional.group_norm(torch.tensor(x), 1).numpy()
    constants = {"scale": scale, "bias": bias}
    return _case(
        "GroupNormalization", {"x": x}, [normed * scale + bias], constants=constants, num_groups=1
    )


def _groups():
    x = _draw(2, 6, 3, 5)
    x[:, 0] += 4  # channels differ, so that statistics of each would be others
    scale, bias = np.arange(6, dtype=np.float32), _draw(6)
    tensors = (torch.tensor(value) for value in (scale, bias))
    expected = torch.nn.functional.group_norm(torch.tensor(x), 1, *tensors).numpy()
    constants = {"scale": scale, "bias": bias}
    return _case(
        "GroupNormalization", {"x": x}, [expected], constants=constants, opset=21, num_groups=1
    )


def _recurrent(operator):
    """Both directions, with states from before, batch first."""
    torch.manual_seed(0)
    batch, length, size, hidden = 3, 5, 4, 2
    x, states = _draw(batch, length, size), {"h": _draw(2, batch, hidden)}
    if operator == "LSTM":
        states["c"] = states["h"] * -0.5
    layer = getattr(torch.nn, operator)(size, hidden, batch_first=True, bidirectional=True)
    given = tuple(torch.tensor(state) for state in states.values())
    with torch.no_grad():
        y, last = layer(torch.tensor(x), given if len(given) > 1 else given[0])
    last = last if isinstance(last, tuple) else (last,)
    expected = [
        y.numpy().reshape(batch, length, 2, hidden),
        *(state.numpy().transpose(1, 0, 2) for state in last),
    ]
    # ONNX has the gates of an LSTM as i, o, f, c where PyTorch has i, f, c, o; those of a GRU as
    # z, r, h where PyTorch has r, z, h.
    order = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}[operator]

    def gates(name):
        found = []
        for suffix in ("", "_reverse"):
            value = getattr(layer, f"{name}_l0{suffix}").detach().numpy()
            found.append(np.concatenate([np.split(value, len(order))[i] for i in order]))
        return np.stack(found)

    biases = np.concatenate([gates("bias_ih"), gates("bias_hh")], 1)
    constants = {"w": gates("weight_ih"), "r": gates("weight_hh"), "b": biases}
    inputs = {"x": x, **{name: state.transpose(1, 0, 2).copy() for name, state in states.items()}}
    extra = {"linear_before_reset": 1} if operator == "GRU" else {}
    return _case(
        operator,
        inputs,
        expected,
        constants=constants,
        before=["x", "w", "r", "b", "", *states],
        direction="bidirectional",
        hidden_size=hidden,
        layout=1,
        **extra,
    )


def _to_pixels(extents, kernel, pads=(0, 0, 0, 0), **attributes):
    """Convolutions of any batch."""
    x, w, b = _draw(3, 4, *extents), _draw(5, 4, *kernel), np.linspace(-1, 1, 5, dtype=np.float32)
    around = list(pads)
    if "auto_pad" in attributes:
        odd = attributes["auto_pad"] == "SAME_LOWER"
        missing = [max(k - e, 0) for k, e in zip(kernel, extents, strict=True)]
        before = [(m + odd) // 2 for m in missing]
        around = before + [m - one for m, one in zip(missing, before, strict=True)]
    else:
        attributes["pads"] = around
    top, left, bottom, right = around
    padded = torch.nn.functional.pad(torch.tensor(x), (left, right, top, bottom))
    strides = attributes.get("strides", 1)
    expected = torch.nn.functional.conv2d(padded, torch.tensor(w), torch.tensor(b), strides)
    case = _case("Conv", {"x": x}, [expected.numpy()], constants={"w": w, "b": b}, **attributes)
    for value in (*case.model.graph.input, *case.model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return case


def _least(operator, number):
    x = np.array([-(2**63), -1, 0, 5, 2**40, 2**63 - 1])
    expected = [x + number]  # the same as the difference, as both wrap
    return _case(operator, {"x": x}, expected, constants={"c": number})


def _transposed_line(kernel, stride, groups=1, kind=np.float32, **options):
    """Along one axis: with gaps between windows, or in groups of a length that is not fixed."""
    x, w = _draw(2, 4, 9, kind=kind), _draw(4, 3, kernel, kind=kind)
    b = np.linspace(-1, 1, 3 * groups).astype(kind)
    wide = (torch.tensor(array.astype(np.float64)) for array in (x, w, b))
    convolve = torch.nn.functional.conv_transpose1d
    expected = convolve(*wide, stride=stride, groups=groups, **options).numpy().astype(kind)
    names = {"padding": "pads", "output_padding": "output_padding", "dilation": "dilations"}
    given = {names[name]: [value] for name, value in options.items()}
    given |= {"pads": given["pads"] * 2} if "pads" in given else {}
    case = _case(
        "ConvTranspose", {"x": x}, [expected], constants={"w": w, "b": b}, strides=[stride],
        group=groups, **given,
    )  # fmt: skip
    if groups > 1:
        for value, name in ((case.model.graph.input[0], "l"), (case.model.graph.output[0], "m")):
            value.type.tensor_type.shape.dim[2].dim_param = name
    return case


def _transposed_image(dilation, stride, kind=np.float32, **options):
    """Along two axes, with strides and gaps in the windows."""
    x, w = _draw(2, 4, 5, 6, kind=kind), _draw(4, 3, 3, 2, kind=kind)
    b = np.linspace(-1, 1, 3).astype(kind)
    wide = (torch.tensor(array.astype(np.float64)) for array in (x, w, b))
    given = {"dilation": dilation, "stride": stride, **options}
    expected = torch.nn.functional.conv_transpose2d(*wide, **given).numpy().astype(kind)
    pads = [*options["padding"]] * 2 if "padding" in options else [0] * 4
    return _case(
        "ConvTranspose", {"x": x}, [expected], constants={"w": w, "b": b}, strides=stride,
        dilations=dilation, pads=pads, output_padding=options.get("output_padding", (0, 0)),
    )  # fmt: skip


def _few_pixels(height, width, corners):
    """A cubic interpolation between few pixels of an image that a node makes."""
    x, grid = _draw(2, 3, height, width), _draw(2, 4, 5, 2)
    expected = torch.nn.functional.grid_sample(
        torch.tensor(-x), torch.tensor(grid), "bicubic", "zeros", bool(corners)
    )
    case = _case(
        "GridSample", {"x": x}, [expected.numpy()], constants={"g": grid}, before=["a", "g"],
        mode="cubic", align_corners=corners, opset=20,
    )  # fmt: skip
    case.model.graph.node.insert(0, helper.make_node("Neg", ["x"], ["a"]))
    return case


def _exponential():
    """Two Elus that differ in alpha alone."""
    x = _draw(2, 3, 4)
    expected = [torch.nn.functional.elu(torch.tensor(x), alpha).numpy() for alpha in (1.5, 1)]
    case = _case("Elu", {"x": x}, expected[:1], alpha=1.5)
    other = helper.make_node("Elu", ["x"], ["y1"])
    case.model.graph.node.append(other)
    case.model.graph.output.append(helper.make_tensor_value_info("y1", 1, x.shape))
    return case._replace(expected=expected)


def _short_loop(condition):
    """Three trips over a dynamic shape, whose body reads its number and a value from outside."""
    proto = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 18]>
        g (float[n,2] x) => (float[n,2] y0, float[n,2] y1)
        <int64 t = {{3}}, bool c = {{1}}, float[2] w = {{0.5, -2}}> {{
          y0, y1 = Loop <body = b (int64 i, bool k, float[n,2] s, float[n,2] u)
            => (bool o, float[n,2] p, float[n,2] q) {{
              o = Identity (k) f = Cast <to = 1> (i) m = Mul (s, w) p = Add (m, f) q = Sub (s, u) }}
            > (t, {condition}, x, x) }}""",
    )
    proto.graph.node[0].name = "node"
    x = _draw(3, 2)
    s, u, w = x, x, np.array([0.5, -2], np.float32)
    for trip in range(3):
        s, u = s * w + np.float32(trip), s - u
    return Case(proto, "Loop", {"x": x}, [s, u])


CASES = {
    "triangle": _triangle,
    "mean": _mean,
    "mean of FP16": _half_mean,
    "mean of one": _single_mean,
    "transposed pixel": lambda: _transposed_pixel((1, 1), [2, 3], [1, 1]),
    "transposed pixel of FP16": lambda: _transposed_pixel((1, 1), [2, 3], [3, 2], np.float16),
    "transposed line": lambda: _transposed_pixel((1, 4), [3, 2], [2, 3]),
    "transposed column": lambda: _transposed_pixel((5, 1), [2, 3], [2, 3], padding=(0, 1)),
    "transposed row, padded": lambda: _transposed_pixel(
        (1, 4), [2, 3], [3, 2], output_padding=(2, 1)
    ),
    "transposed row, cut and padded": lambda: _transposed_pixel(
        (1, 4), [2, 3], [3, 2], padding=(1, 1), output_padding=(2, 1)
    ),
    "transposed pixel, padded": lambda: _transposed_pixel(
        (1, 1), [2, 2], [3, 3], output_padding=(2, 1)
    ),
    "transposed gaps": lambda: _transposed_line(2, 5),
    "transposed gaps of FP16": lambda: _transposed_line(1, 3, kind=np.float16),
    "transposed gaps of windows with gaps": lambda: _transposed_line(
        3, 7, dilation=2, padding=1, output_padding=2
    ),
    "transposed groups": lambda: _transposed_line(3, 2, 4),
    "transposed groups, cut": lambda: _transposed_line(5, 2, 2, padding=4, output_padding=1),
    "transposed groups, cut at both ends": lambda: _transposed_line(2, 3, 2, padding=2),
    "transposed groups with gaps": lambda: _transposed_line(2, 4, 4, dilation=2, output_padding=1),
    "transposed image with gaps": lambda: _transposed_image((2, 2), (2, 2)),
    "transposed image with gaps in FP16": lambda: _transposed_image(
        (1, 3), (3, 2), kind=np.float16
    ),
    "transposed image with gaps, cut and padded": lambda: _transposed_image(
        (2, 1), (1, 3), padding=(1, 0), output_padding=(0, 2)
    ),
    "few pixels": lambda: _few_pixels(1, 4, 0),
    "few pixels between corners": lambda: _few_pixels(5, 3, 1),
    "exponentials": _exponential,
    "short loop": lambda: _short_loop("c"),
    "short loop without a condition": lambda: _short_loop(""),
    "convolution to a pixel": lambda: _to_pixels((3, 2), [3, 2]),
    "convolution to a padded pixel": lambda: _to_pixels((2, 1), [3, 2], [1, 0, 0, 1]),
    "convolution to a cut pixel": lambda: _to_pixels((4, 3), [3, 2], strides=[2, 2]),
    "convolution of one pixel": lambda: _to_pixels((1, 1), [1, 1], strides=[2, 2]),
    "convolution of a pixel, above": lambda: _to_pixels((1, 1), [1, 2], auto_pad="SAME_UPPER"),
    "convolution of a pixel, below": lambda: _to_pixels(
        (2, 1), [3, 2], strides=[2, 2], auto_pad="SAME_LOWER"
    ),
    "sum with the least number": lambda: _least("Add", np.array(-(2**63))),
    "difference to the least number": lambda: _least("Sub", np.array([[-(2**63)]])),
    "pool": _pool,
    "squares": lambda: _reduction("ReduceSumSquare", np.square),
    "L1": lambda: _reduction("ReduceL1", np.abs),
    "L2": lambda: _reduction("ReduceL2", np.abs),
    "logarithms": lambda: _reduction("ReduceLogSum", np.log),
    "logarithm of exponents": lambda: _logarithm(18),
    "logarithm of exponents, earlier": lambda: _logarithm(13, keepdims=0),
    "limits": _limits,
    "average": lambda: _average(0),
    "average of padding": lambda: _average(1),
    "max of padding": lambda: _ceil_pool("MaxPool", (3, 5), 2, 2, 1, 22),
    "max between windows": lambda: _ceil_pool("MaxPool", (7,), 2, 3, 0, 12),
    "max of far padding": lambda: _ceil_pool("MaxPool", (6, 4), 3, 4, 1, 18),
    "average without padding": lambda: _ceil_pool("AveragePool", (5, 7), 2, 2, 1, 19),
    "average of far padding": lambda: _ceil_pool(
        "AveragePool", (3, 4), 2, 3, 1, 22, count_include_pad=1
    ),
    "max of VALID": lambda: _valid_pool("MaxPool"),
    "average of VALID": lambda: _valid_pool("AveragePool"),
    "resized to 28": lambda: _resized(0.29, 100, "linear", "half_pixel"),
    "resized to 56": lambda: _resized(0.57, 100, "nearest", "asymmetric", nearest_mode="floor"),
    "transposed row": lambda: _transposed(1),
    "transposed image": lambda: _transposed(2),
    "groups": _groups,
    "groups of opset 18": _groups_of_before,
    "LSTM": lambda: _recurrent("LSTM"),
    "GRU": lambda: _recurrent("GRU"),
    "RNN": lambda: _recurrent("RNN"),
}
