from __future__ import annotations

import json

import pytest

from trt_native.config import BuildConfig
from trt_native.errors import ModelError, SpecError
from trt_native.graph.dims import (
    fixed_axes,
    read_limits,
    read_profile_file,
    resolve_profiles,
    shape_problems,
    with_fast_profiles,
    with_opt_shape_profiles,
    write_limits,
)
from trt_native.shapes import DimRange, ProfileSpec, ShapeRange, TensorSpec

LATENTS = TensorSpec("latents", "float32", ("batch", 13, "frames", "height", "width"))
AUDIO = TensorSpec("audio", "float32", ("batch*frames", 50, 384))
STEP = TensorSpec("timestep", "int64", (1,))
INPUTS = (LATENTS, STEP, AUDIO)
DIMS = ("batch=1:2:2", "frames=1:16:16", "height=32:64:64", "width=64")


def resolve(*specs, inputs=INPUTS):
    return resolve_profiles(inputs, specs)


def test_expressions_follow_their_dimensions():
    (profile,) = resolve(ProfileSpec.parse(DIMS))
    assert profile.shapes == {
        "latents": ShapeRange((1, 13, 1, 32, 64), (2, 13, 16, 64, 64), (2, 13, 16, 64, 64)),
        "audio": ShapeRange((1, 50, 384), (32, 50, 384), (32, 50, 384)),
    }


def test_a_shape_wins_and_the_other_inputs_follow_it():
    shape = "latents=1x13x2x8x8:1x13x4x8x8:1x13x4x8x8"
    (profile,) = resolve(ProfileSpec.parse(DIMS, [shape]))
    assert str(profile.shapes["latents"]) == shape.removeprefix("latents=")
    assert str(profile.shapes["audio"]) == "2x50x384:4x50x384:4x50x384"


def test_a_whole_expression_can_be_given_by_its_text():
    (profile,) = resolve(ProfileSpec.parse(["batch*frames=2:4:8"]), inputs=(AUDIO,))
    assert str(profile.shapes["audio"]) == "2x50x384:4x50x384:8x50x384"


def test_a_static_model_needs_no_profile():
    assert resolve(inputs=(STEP,)) == ()


def test_several_profiles():
    small = ProfileSpec.parse(["batch=1", "frames=1", "height=8", "width=8"])
    first, second = resolve(small, ProfileSpec.parse(DIMS))
    assert first.shapes["audio"].is_static
    assert not second.shapes["audio"].is_static


def test_optimum_shapes_get_profiles_of_their_own_once():
    large = ProfileSpec.parse(DIMS)
    alone = ProfileSpec.parse(["batch=2", "frames=16", "height=64", "width=64"])
    profiles = resolve(large, ProfileSpec.parse(["batch=1", "frames=1", "height=8", "width=8"]))
    assert with_opt_shape_profiles(profiles) == (*profiles, *resolve(alone))
    assert with_opt_shape_profiles(resolve(large, alone)) == resolve(large, alone)
    assert with_opt_shape_profiles(()) == ()


def fast(texts, *specs, inputs=INPUTS):
    shapes = BuildConfig(fast_at=texts).fast_shapes()
    return with_fast_profiles(resolve(*specs, inputs=inputs), inputs, specs, shapes)


@pytest.mark.parametrize(
    ("text", "latents", "audio"),
    [
        ("frames=1", "2x13x1x64x64", "2x50x384"),
        ("batch=1, frames=3,height=40", "1x13x3x40x64", "3x50x384"),
        ("latents=1x13x2x32x64", "1x13x2x32x64", "2x50x384"),
    ],
)
def test_single_shapes_get_profiles_of_their_own(text, latents, audio):
    range_, alone = fast([text], ProfileSpec.parse(DIMS))
    assert (range_,) == resolve(ProfileSpec.parse(DIMS))
    assert alone.shapes == {
        "latents": ShapeRange.parse(latents),
        "audio": ShapeRange.parse(audio),
    }


def test_single_shapes_belong_to_the_profile_with_room_for_them():
    small = ProfileSpec.parse(["batch=1", "frames=1:2:4", "height=8", "width=8"])
    profiles = fast(
        ["frames=16", "frames=3,batch=1", "batch=1,frames=3"], ProfileSpec.parse(DIMS), small
    )
    assert [str(p.shapes["latents"]) for p in profiles[2:]] == ["2x13x16x64x64", "1x13x3x64x64"]
    _, of_small = fast(["frames=3"], small)
    assert str(of_small.shapes["latents"]) == "1x13x3x8x8"


def test_a_single_shape_by_dimensions_where_the_range_is_of_an_input():
    shape = "latents=1x13x1x8x8:1x13x4x8x8:2x13x4x8x8"
    _, alone = fast(["batch=2,frames=3,height=8,width=8"], ProfileSpec.parse((), [shape]))
    assert str(alone.shapes["latents"]) == "2x13x3x8x8"
    with pytest.raises(SpecError, match="does not fit the model") as caught:
        fast(["batch=2"], ProfileSpec.parse((), [shape]))
    assert any("frames" in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frames=17", "fast at frames=17: outside of the ranges of the profiles"),
        ("latents=3x13x1x32x64", "outside of the ranges"),
        ("hieght=3", "does not fit the model"),
        ("latents=3x13", "does not fit the model"),
        ("batch=1:2:2", "has a range; give one shape"),
        ("batch", "not NAME=RANGE"),
        ("", "not NAME=RANGE"),
        ("batch=-1", "not a shape"),
        ("batch=1,batch=2", "given twice"),
    ],
)
def test_what_is_no_single_shape_of_a_profile(text, message):
    with pytest.raises(SpecError, match=message) as caught:
        fast([text], ProfileSpec.parse(DIMS))
    assert caught.value.options == ("fast_at",)


def test_a_single_shape_of_a_static_model():
    with pytest.raises(SpecError, match="no effect, because every shape of the model is fixed"):
        fast(["batch=1"], ProfileSpec(), inputs=(STEP,))


def test_all_faults_come_in_one_error_with_the_dimensions():
    with pytest.raises(SpecError) as caught:
        resolve(
            ProfileSpec(
                dims={"batch": DimRange(1, 2, 2), "hieght": DimRange(1, 1, 1)},
                shapes={"latent": ShapeRange((1,), (1,), (1,))},
            )
        )
    text = str(caught.value)
    for part in (
        "dimension 'hieght' is not one of the model's; did you mean 'height'?",
        "input 'latent' is not one of the model's; did you mean 'latents'?",
        "dimension 'frames' has no range: give one as frames=MIN:OPT:MAX",
        "dimension 'width' has no range",
        "the model's dimensions: batch (latents[0]), frames (latents[2])",
        "batch*frames (audio[0])",
    ):
        assert part in text
    assert text.count("'frames' has no range") == 1


def test_errors_name_the_number_of_the_profile():
    with pytest.raises(SpecError, match="profile 1: dimension 'frames' has no range"):
        resolve(ProfileSpec.parse(DIMS), ProfileSpec.parse(["batch=1", "height=8", "width=8"]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("latents=1x13x4x8", "has 5 axes, the range 1x13x4x8 has 4"),
        ("latents=1x12x4x8x8", r"axis 1 of latents.* is fixed"),
    ],
)
def test_a_shape_that_contradicts_the_model(shape, message):
    with pytest.raises(SpecError, match=message):
        resolve(ProfileSpec.parse(DIMS, [shape]))


def test_two_shapes_that_contradict_each_other():
    other = TensorSpec("other", "float32", ("batch", 4))
    with pytest.raises(SpecError, match="dimension 'batch' is 1 in one shape and 2 in another"):
        resolve(ProfileSpec.parse((), ["latents=1x13x4x8x8", "other=2x4"]), inputs=(LATENTS, other))


def test_an_expression_that_falls_is_refused():
    falling = TensorSpec("x", "float32", ("16 - n",))
    with pytest.raises(SpecError, match=r"comes out as 15:8:0, which is not an ordered range"):
        resolve(ProfileSpec.parse(["n=1:8:16"]), inputs=(falling,))


def test_an_axis_without_a_name_needs_a_shape():
    unnamed = TensorSpec("x", "float32", (None, 3))
    with pytest.raises(SpecError, match=r"axis 0 of x: float32.* has no name") as caught:
        resolve(inputs=(unnamed,))
    assert caught.value.lines[-1] == "the model's dimensions: none has a name"
    (profile,) = resolve(ProfileSpec.parse((), ["x=1x3:2x3:4x3"]), inputs=(unnamed,))
    assert str(profile.shapes["x"]) == "1x3:2x3:4x3"


def test_an_input_of_unknown_rank_needs_a_shape():
    unknown = TensorSpec("x", "float32", None)
    with pytest.raises(SpecError, match="give its shapes as x=MIN:OPT:MAX"):
        resolve(inputs=(unknown,))
    (profile,) = resolve(ProfileSpec.parse((), ["x=1x3"]), inputs=(unknown,))
    assert profile.shapes["x"].is_static


def test_a_range_for_a_small_integer_input_speaks_of_its_values():
    shape = TensorSpec("shape", "int64", (2,))
    (profile,) = resolve(ProfileSpec.parse((), ["shape=1x4:2x4:4x4"]), inputs=(shape,))
    assert profile.shapes == {}
    assert str(profile.values["shape"]) == "1x4:2x4:4x4"


@pytest.mark.parametrize("name", ["N/A", "dim 1", "unk__0", "a.b", "lambda"])
def test_any_text_can_name_a_dimension(name):
    odd = TensorSpec("x", "float32", (name,))
    (profile,) = resolve(ProfileSpec(dims={name: DimRange(1, 2, 3)}), inputs=(odd,))
    assert str(profile.shapes["x"]) == "1:2:3"


def test_fixed_axes_are_those_that_no_profile_varies():
    profiles = resolve(
        ProfileSpec.parse(["batch=1", "frames=4", "height=8:16:16", "width=8"]),
        ProfileSpec.parse(["batch=2", "frames=4", "height=8:16:16", "width=8"]),
    )
    assert fixed_axes(profiles, "latents") == (None, 13, 4, None, 8)
    assert fixed_axes(profiles, "audio") == (None, 50, 384)


YAML = """
profiles:
  - name: one chunk
    dims: {batch: 1:2:2, frames: 16}
  - dims:
      batch: 1:1:59
    shapes:
      x: 1x3:2x3:4x3
"""
TOML = """
[[profiles]]
name = "one chunk"
dims = {batch = "1:2:2", frames = 16}
[[profiles]]
dims = {batch = [1, 1, 59]}
shapes = {x = [[1, 3], [2, 3], [4, 3]]}
"""
EXPECTED = (
    ProfileSpec.parse(["batch=1:2:2", "frames=16"]),
    ProfileSpec.parse(["batch=1:1:59"], ["x=1x3:2x3:4x3"]),
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.yaml", YAML),
        ("p.toml", TOML),
        (
            "p.json",
            json.dumps(
                {
                    "profiles": [
                        {"dims": {"batch": "1:2:2", "frames": 16}},
                        {"dims": {"batch": "1:1:59"}, "shapes": {"x": "1x3:2x3:4x3"}},
                    ]
                }
            ),
        ),
    ],
)
def test_profile_files(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_profile_file(path) == EXPECTED


def test_a_file_may_hold_one_profile_alone(tmp_path):
    path = tmp_path / "p.yml"
    path.write_text("dims: {batch: 2}")
    assert read_profile_file(path) == (ProfileSpec.parse(["batch=2"]),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", "ends in one of .yaml"),
        ("p.yaml", "a: [", "not valid YAML"),
        ("p.json", "{", "not valid JSON"),
        ("p.toml", "=", "not valid TOML"),
        ("p.yaml", "profiles: 3", "must be a list"),
        ("p.yaml", "sizes: {}", r"found \['sizes'\]"),
        ("p.yaml", "dims: {batch: 2:1:1}", "batch: not ordered"),
        ("p.yaml", "dims: 7", "needs NAME: RANGE entries"),
        ("p.yaml", "", "needs the keys"),
    ],
)
def test_bad_profile_files(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        read_profile_file(path)


def test_a_missing_profile_file(tmp_path):
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        read_profile_file(tmp_path / "p.yaml")


def test_shapes_that_fit():
    shapes = {"latents": (2, 13, 16, 8, 8), "timestep": (1,), "audio": (32, 50, 384)}
    assert shape_problems(INPUTS, shapes) == []
    assert shape_problems(INPUTS, {"audio": (31, 50, 384)}) == []


def test_shapes_that_do_not_fit():
    shapes = {"latents": (2, 12, 16, 8, 8), "timestep": (), "audio": (31, 50, 384)}
    assert shape_problems(INPUTS, shapes) == [
        f"{LATENTS} needs 13 on axis 1, found 2x12x16x8x8",
        f"{STEP} needs 1 axes, found scalar",
        "audio[0] needs batch*frames = 32 (batch=2, frames=16), found 31",
    ]
    square = TensorSpec("square", "float32", ("n", None, "n"))
    faults = shape_problems([square, TensorSpec("any", "float32", None)], {"square": (3, 7, 4)})
    assert faults == ["dimension 'n' is 3 in square[0], but 4 in square[2]"]


class TestLimits:
    INPUTS = (
        TensorSpec("x", "float32", ("batch", "frames")),
        TensorSpec("y", "float32", ("batch*frames", 4)),
    )

    def test_limits_come_back_from_metadata(self):
        metadata = write_limits({"frames": 24, "tokens": 77})
        assert metadata == {"trt_native.max.frames": "24", "trt_native.max.tokens": "77"}
        assert read_limits({**metadata, "other": "x"}) == {"frames": 24, "tokens": 77}

    @pytest.mark.parametrize("text", ["", "many", "-1", "2.5", "9" * 30])
    def test_a_limit_that_is_not_a_number_is_an_error(self, text):
        with pytest.raises(ModelError, match=r"trt_native\.max\.frames is"):
            read_limits({"trt_native.max.frames": text})

    @pytest.mark.parametrize(
        "spec",
        [
            ProfileSpec.parse(["batch=1", "frames=1:16:25"]),
            ProfileSpec.parse(shapes=["x=1x1:2x8:2x32", "y=1x4:16x4:64x4"]),
        ],
        ids=["dimension", "shape"],
    )
    def test_a_profile_above_a_limit_is_refused(self, spec):
        with pytest.raises(SpecError, match=r"'frames' reaches \d+, but the model has at most 24"):
            resolve_profiles(self.INPUTS, [spec], {"frames": 24})
        assert resolve_profiles(self.INPUTS, [spec])

    def test_a_profile_at_the_limit_is_taken(self):
        spec = ProfileSpec.parse(["batch=1", "frames=1:16:24"])
        (profile,) = resolve_profiles(self.INPUTS, [spec], {"frames": 24, "other": 1})
        assert profile.shapes["x"].max == (1, 24)
