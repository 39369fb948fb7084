"""A tiny decoder: in PyTorch over whole sequences, and in ONNX one token at a time, with caches."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.functional import relu, scaled_dot_product_attention

VOCABULARY, LENGTH, LAYERS, HEADS, FEATURES = 96, 64, 2, 4, 16
WIDTH = HEADS * FEATURES


class Layer(torch.nn.Module):
    """Causal attention and two linear layers, without norms and biases."""

    def __init__(self):
        super().__init__()
        for name in ("q", "k", "v", "o"):
            setattr(self, name, torch.nn.Linear(WIDTH, WIDTH, bias=False))
        self.up = torch.nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = torch.nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = (
            project(x).unflatten(-1, (HEADS, FEATURES)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        found = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(found.transpose(1, 2).flatten(2))
        return x + self.down(relu(self.up(x)))


class Decoder(torch.nn.Module):
    """Token ids (1, n) to the logits of each next one (1, n, VOCABULARY)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.places = torch.nn.Embedding(LENGTH, WIDTH)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids):
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    @torch.no_grad()
    def generate(self, prompt, count):
        """Continue a prompt by the likeliest tokens, each from the whole sequence before it."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self(torch.tensor([ids]))[0, -1].argmax()))
        return ids


class Graph:
    """The nodes and weights of an ONNX graph."""

    def __init__(self):
        self.nodes, self.weights = [], {}

    def add(self, operator, *inputs, output=None, **attributes):
        """Add a node, and return the name of its output; arrays become weights."""
        names = [x if isinstance(x, str) else self.weight(x) for x in inputs]
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], output, **attributes))
        return output

    def weight(self, array):
        name = f"weight_{len(self.weights)}"
        self.weights[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def linear(self, x, layer):
        return self.add("MatMul", x, layer.weight.detach().numpy().T.copy())

    def heads(self, x, layer):
        """Project x (1, 1, WIDTH) to (1, HEADS, 1, FEATURES)."""
        rows = self.add("Reshape", self.linear(x, layer), np.array([1, 1, HEADS, FEATURES]))
        return self.add("Transpose", rows, perm=[0, 2, 1, 3])


def step_model(decoder):
    """One step in ONNX: token, its index and the caches, to the next token and the new caches."""
    graph = Graph()
    embedded = [
        graph.add("Gather", table.weight.detach().numpy(), ids)
        for table, ids in ((decoder.tokens, "token"), (decoder.places, "index"))
    ]
    x = graph.add("Reshape", graph.add("Add", *embedded), np.array([1, 1, WIDTH]))
    places = np.arange(LENGTH).reshape(1, 1, 1, LENGTH)
    now = graph.add("Reshape", "index", np.array([1, 1, 1, 1]))
    seen = graph.add("LessOrEqual", places, now)
    mask = graph.add("Where", seen, np.float32(0), np.float32(-1e9))
    shape, caches = [1, HEADS, LENGTH, FEATURES], []
    for number, layer in enumerate(decoder.layers):
        q, k, v = (graph.heads(x, project) for project in (layer.q, layer.k, layer.v))
        whole = {}
        for name, new in (("keys", k), ("values", v)):
            past = f"{name}_{number}"
            caches.append(past)
            whole[name] = graph.add(  # in axis 2, at the index
                "TensorScatter", past, new, "index", output=f"new_{past}", axis=2
            )
        turned = graph.add("Transpose", whole["keys"], perm=[0, 1, 3, 2])
        scores = graph.add("Mul", graph.add("MatMul", q, turned), np.float32(FEATURES**-0.5))
        shares = graph.add("Softmax", graph.add("Add", scores, mask), axis=-1)
        found = graph.add(
            "Transpose", graph.add("MatMul", shares, whole["values"]), perm=[0, 2, 1, 3]
        )
        joined = graph.add("Reshape", found, np.array([1, 1, WIDTH]))
        x = graph.add("Add", x, graph.linear(joined, layer.o))
        hidden = graph.add("Relu", graph.linear(x, layer.up))
        x = graph.add("Add", x, graph.linear(hidden, layer.down))
    logits = graph.add("Reshape", graph.linear(x, decoder.head), np.array([1, VOCABULARY]))
    graph.add("ArgMax", logits, output="next", axis=1, keepdims=0)
    whole_number, real = TensorProto.INT64, TensorProto.FLOAT
    tensors = [
        [helper.make_tensor_value_info(*tensor) for tensor in group]
        for group in (
            [("token", whole_number, [1]), ("index", whole_number, [1])]
            + [(name, real, shape) for name in caches],
            [("next", whole_number, [1])] + [(f"new_{name}", real, shape) for name in caches],
        )
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "decoder", *tensors, list(graph.weights.values())),
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=11,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    onnx.save(step_model(Decoder()), "decoder.onnx")
