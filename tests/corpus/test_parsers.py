"""What a person writes: any text at all is read, or refused with a reason."""

from __future__ import annotations

import json
import math

import pytest
from helpers.mutations import attempt
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trt_native.calibration.caches import cache_header
from trt_native.cli.inputs import open_inputs, read_shapes
from trt_native.config import (
    BuildConfig,
    CalibrationMethod,
    HardwareCompatibility,
    IoPrecision,
    Precision,
    RuntimePlatform,
    parse_ops,
)
from trt_native.errors import SpecError
from trt_native.graph.dims import read_profile_file, resolve_profiles
from trt_native.shapes import DimRange, ProfileSpec, ShapeRange, TensorSpec, parse_shape
from trt_native.units import parse_bytes, parse_duration

ALPHABET = "0123456789x,:=.-+ \t\nabcdhmsGgiIBkKeE_*/()[]{}'\"\\\0\x1b\u0661\u00b2\ud800"
near = st.text(st.sampled_from(ALPHABET), max_size=40)
anything = st.one_of(near, st.text(max_size=40))
examples = ("9" * 5000, " " * 5000 + "y", "1" * 19, "9" * 19, "\u0661", "1e9", "-1", "0x10", "nan")
fuzzed = settings(max_examples=300, deadline=None, derandomize=True)


def with_examples(test):
    for text in examples:
        test = example(text)(test)
    return fuzzed(test)


@with_examples
@given(anything)
def test_sizes_and_durations(text):
    size, error = attempt(parse_bytes, text, kind=SpecError)
    assert "not a size" in error.message if error else 0 <= size < 2**63
    seconds, error = attempt(parse_duration, text, kind=SpecError)
    assert "not a duration" in error.message if error else 0 < seconds < math.inf


@with_examples
@given(anything)
def test_shapes_and_ranges(text):
    shape, error = attempt(parse_shape, text, kind=SpecError)
    if error is None:
        assert all(0 <= extent < 2**63 for extent in shape)
        assert parse_shape("x".join(map(str, shape))) == shape
    for kind in (DimRange, ShapeRange):
        for candidate in (text, f"{text}:{text}:{text}", f"1:{text}:4"):
            found, error = attempt(kind.parse, candidate, kind=SpecError)
            if error is None:
                assert found.min <= found.opt <= found.max
                assert kind.parse(str(found)) == found


@with_examples
@given(anything)
def test_entries(text):
    entries = [f"batch={text}"], [f"x={text}"]
    spec, error = attempt(ProfileSpec.parse, *entries, kind=SpecError)
    dim, _ = attempt(DimRange.parse, text.rpartition("=")[2], kind=SpecError)
    assert error is not None or dim in spec.dims.values()
    found, error = attempt(read_shapes, [text], kind=SpecError)
    assert error is not None or isinstance(found, dict)
    attempt(lambda: open_inputs([text]).__enter__(), kind=SpecError)
    for choice in (
        Precision,
        IoPrecision,
        HardwareCompatibility,
        RuntimePlatform,
        CalibrationMethod,
    ):
        found, error = attempt(choice.parse, text)
        assert error is not None or found in choice


@with_examples
@given(anything)
def test_words_of_a_build(text):
    config, error = attempt(lambda: BuildConfig(compute_capabilities=(text,)), kind=SpecError)
    assert error is not None or config.compute_capabilities == (text,)
    header, error = attempt(cache_header, text, kind=SpecError)
    assert error is not None or header.startswith("TRT-")
    ops, error = attempt(parse_ops, text, kind=SpecError)
    assert error is not None or all(ops)


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        near,
        st.sampled_from(["1:2:4", "2", "1x3:2x3:4x3"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["dims", "shapes", "name", "profiles", "batch", ""]), inner
        ),
    ),
    max_leaves=12,
)


@settings(fuzzed, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values)
def test_profile_documents(tmp_path, document):
    read(tmp_path / "p.json", json.dumps(document).encode())
    read(tmp_path / "p.yaml", json.dumps(document).encode())


@settings(fuzzed, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=60), anything.map(lambda text: text.encode(errors="replace"))))
def test_profile_bytes(tmp_path, content):
    for suffix in (".yaml", ".json", ".toml"):
        read(tmp_path / f"p{suffix}", content)
        read(tmp_path / f"q{suffix}", b"dims: {batch: " + content + b"}")


BOMB = "a0: &a0 [1, 2]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".yaml", BOMB),
        (".yaml", BOMB + "profiles: *a11"),
        (".yaml", BOMB + "profiles: [*a11]"),
        (".yaml", BOMB + "profiles: [{dims: *a11}]"),
        (".yaml", BOMB + "profiles: [{dims: {batch: *a11}}]"),
        (".yaml", BOMB + "profiles: [{dims: {batch: {x: *a11}}}]"),
        (".yaml", "&a [*a]"),
        (".yaml", "dims: &a {batch: *a}"),
        (".yaml", "profiles: &a [*a]"),
        (".yaml", "1: 2\ndims: {}\n"),
        (".yaml", "? [1, 2]\n: 3\n"),
        (".yaml", "!!python/object/apply:os.system ['id']"),
        (".yaml", "dims: !!python/name:os.system"),
        (".yaml", "[" * 2000),
        (".yaml", "dims: {batch: 2001-13-45}"),
        (".yaml", "a: 1\na: 2\n"),
        (".json", "[" * 100_000),
        (".json", '{"dims": {"batch": ' + "9" * 5000 + "}}"),
        (".json", '{"dims": {"batch": 1e999}}'),
        (".json", '{"dims": {"\\ud800": 1}, "x": 2}'),
        (".toml", "dims = " + "[" * 5000),
        (".toml", "[dims]\nbatch = 0x" + "f" * 5000),
        (".toml", "profiles = 1979-05-27"),
    ],
)
@pytest.mark.timeout(20)
def test_hostile_profile_files(tmp_path, suffix, content):
    path = tmp_path / f"p{suffix}"
    assert read(path, content.encode()) is None


def read(path, content):
    """The profiles, or None and an error that names the file, in few words."""
    path.write_bytes(content)
    profiles, error = attempt(read_profile_file, path, kind=SpecError)
    if error is not None:
        assert str(path) in error.message
        assert len(str(error)) < 20_000
        return None
    assert all(isinstance(profile, ProfileSpec) for profile in profiles)
    return profiles


symbols = st.one_of(
    anything,
    st.sampled_from(["batch", "a*b", "a//b", "a/0", "a%b", "max(a, b)", "2**a", "-a", "a b"]),
)


@fuzzed
@example("9**9**9**9", "a", 7)
@example("a**99999999", "a", 7)
@example("(" * 5000 + "a" + ")" * 5000, "a", 7)
@example("+".join(["a"] * 5000), "a", 7)
@example("a//0", "a", 7)
@example("9" * 5000 + "*a", "a", 7)
@given(symbols, symbols, st.integers(0, 2**64))
def test_dimensions_of_a_model(expression, name, extent):
    """A model may call its dimensions anything; what they come out as is a range, or a fault."""
    inputs = (TensorSpec("x", "float32", (expression, 3)), TensorSpec("y", "float32", (name,)))
    ranges = {n: DimRange(0, min(extent, 2**63 - 1), 2**63 - 1) for n in (name, "a", "b")}
    for dims in ({}, ranges, {name: DimRange(extent % 9, extent % 9, 9)}):
        wanted = [ProfileSpec(dims)]
        profiles, error = attempt(resolve_profiles, inputs, wanted, kind=SpecError)
        assert error is None or error.details
        for profile in profiles or ():
            for shapes in profile.shapes.values():
                assert shapes.min <= shapes.opt <= shapes.max
