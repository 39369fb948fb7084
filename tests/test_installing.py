"""Install commands name what the extras of this package bring."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trt_native.installing import EXTRAS, install_command


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_the_commands_install_what_the_extras_do():
    import tomllib

    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["optional-dependencies"]
    assert {name: list(packages) for name, packages in EXTRAS.items()} == {
        name: declared[name] for name in EXTRAS
    }


def test_a_command():
    assert install_command("export") == "pip install 'torch>=2.9' 'onnxscript>=0.5'"
