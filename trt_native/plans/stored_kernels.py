"""Kernels that a plan of TensorRT-RTX lists as text, read without a GPU.

The text was read off the plans that TensorRT-RTX 1.6 writes: programs of a header, the tensors
(``descriptors``) and the steps (``main``), one entry to a line. A fused kernel has a program of its
own, whose steps are not kernels. What is not understood is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trt_native.plans.stored_content import StoredContent

__all__ = ["stored_kernels"]

_HEADER = b"header {\n"
_TEXT = re.compile(r"descriptors \{\n(.*?)\n\}\nmain \{\n(.*?)\n\}", re.DOTALL)
_CHUNK = 16 * 2**20
_MOST_TEXT = 2**28

_ENTRY = re.compile(r"  (\w+)=\{ (.*)")
_NAME = re.compile(r'\bname=(?:"([^"]+)"|([^"\s]+))')
_BASE = re.compile(r'\bbase="([^"]+)"')
_DIMS = re.compile(r"\bdims=\{([^}]*)\}")
_TYPE = re.compile(r"\btype=(\w+)")
_READS = re.compile(r"\b(?:input_args|input)=\{([^}]*)\}")
_WRITES = re.compile(r"\b(?:output_args|output)=\{([^}]*)\}")
_LAYERS = re.compile(r'\blayers="([^"]*)')
_QUOTED = re.compile(r'"([^"]*)"')
_PROFILE = re.compile(r"\[profile (\d{1,3})\]")
_CONSTANT = "const_payload_size="
_NOT_KERNELS = {"label", "shape_call", "assert", "wait", "record"}
_KINDS = {
    "corrltn": "Convolution",
    "decorrltn": "Deconvolution",
    "fully_connected": "MatrixProduct",
    "runtime_fusion": "FusedProduct",
}
_TYPES = {"half": "Half", "float": "Float"}


def stored_kernels(content: bytes | memoryview | StoredContent) -> list[dict[str, Any]] | None:
    """Read the kernels of a plan, in the order in which they run.

    Args:
        content: The plan's bytes, or where they are.

    Returns:
        One mapping per kernel with keys of the engine inspector's JSON: ``Name``, ``LayerType``,
        ``Inputs``, ``Outputs``, and ``Metadata``, the ONNX nodes that it computes; and ``Profile``,
        the index of the optimization profile that it is for. None where the plan lists none, as
        those of other TensorRTs.

    Raises:
        PlanError: the file cannot be read, or is another one than when it was opened.
    """
    programs = [found for text in _texts(content) for found in _TEXT.finditer(text)]
    kernels = [
        {**kernel, "Profile": _profile(program[1])}
        for program in programs
        for kernel in _kernels(_tensors(program[1]), program[2].split("\n"))
    ]
    return kernels or None


def _profile(text: str) -> int:
    """The optimization profile of a program; names in all but the first have its number."""
    found = _PROFILE.search(text)
    return int(found[1]) if found else 0


def _texts(content: bytes | memoryview | StoredContent) -> Iterator[str]:
    """The programs that are not those of a fused kernel, from their header to the next zero."""
    rest = b""
    for chunk in _chunks(content):
        data = rest + chunk
        start = 0
        while (found := data.find(_HEADER, start)) >= 0:
            end = data.find(b"\0", found)
            if end < 0:
                break
            text = data[found:end].decode(errors="replace")
            if "runtime-fusion-consts" not in text.partition("descriptors {")[0]:
                yield text
            start = end
        if found < 0:
            found = max(start, len(data) - len(_HEADER))
        rest = data[found:] if len(data) - found <= _MOST_TEXT else b""


def _chunks(content: bytes | memoryview | StoredContent) -> Iterator[bytes]:
    if not isinstance(content, StoredContent):
        for start in range(0, len(content), _CHUNK):
            yield bytes(content[start : start + _CHUNK])
        return
    with content.open() as reader:
        while chunk := reader.read(_CHUNK):
            yield chunk


def _tensors(text: str) -> dict[str, dict[str, Any]]:
    """Tensors by name, each with the name of the one whose memory it is a part of."""
    tensors = {}
    for line in text.split("\n"):
        name, kind = _NAME.search(line), _TYPE.search(line)
        if name is None or kind is None:
            continue
        dims, base = _DIMS.search(line), _BASE.search(line)
        own = name[1] or name[2]
        tensors[own] = {
            "Name": base[1] if base else own,
            "Datatype": _TYPES.get(kind[1], kind[1]),
            "Dimensions": _extents(dims[1] if dims else ""),
            "constant": _CONSTANT in line,
        }
    return tensors


def _extents(text: str) -> list[int]:
    """Extents; one that depends on the inputs' shapes has a name."""
    return [int(word) if word.isdecimal() else -1 for word in text.split()]


def _kernels(
    tensors: Mapping[str, Mapping[str, Any]], lines: list[str]
) -> Iterator[dict[str, Any]]:
    for line in lines:
        entry = _ENTRY.match(line)
        name = _NAME.search(line)
        if entry is None or name is None or entry[1] in _NOT_KERNELS:
            continue
        layers = _LAYERS.search(line)
        yield {
            "Name": name[1] or name[2],
            "LayerType": _kind(entry[1], name[0], line),
            "Inputs": _used(tensors, _READS.search(line)),
            "Outputs": _used(tensors, _WRITES.search(line)),
            "Metadata": layers[1] if layers else "",
        }


def _kind(word: str, name: str, line: str) -> str:
    if word != "function":
        return _KINDS.get(word, word)
    if "mha" in name:
        return "Attention"
    return "Pointwise" if "reduction_algo_kind=0" in line else "Reduction"


def _used(
    tensors: Mapping[str, Mapping[str, Any]], found: re.Match[str] | None
) -> list[dict[str, Any]]:
    """The tensors of a list but for constants and extents."""
    names = dict.fromkeys(_QUOTED.findall(found[1])) if found else {}
    known = [tensors[name] for name in names if name in tensors]
    return [
        {key: tensor[key] for key in ("Name", "Datatype", "Dimensions")}
        for tensor in known
        if not tensor["constant"] and tensor["Datatype"] != "int64"
    ]
