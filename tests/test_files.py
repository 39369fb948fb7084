"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trt_native import files
from trt_native.errors import SpecError
from trt_native.files import atomic_write, check_writable, remove_temporaries


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write():
        with atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_check_writable(tmp_path):
    check_writable(tmp_path / "new.plan")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SpecError, match="No such file"):
        check_writable(tmp_path / "missing" / "m.plan")
    with pytest.raises(SpecError, match="is a folder"):
        check_writable(tmp_path)


class TestTemporaries:
    @pytest.fixture(params=["unnamed", "named"])
    def unnamed(self, request, monkeypatch):
        if request.param == "named":  # as on a filesystem that has no files without a name
            monkeypatch.setattr(files, "_open_unnamed", lambda folder: None)
        elif files._open_unnamed(Path(tempfile.gettempdir())) is None:
            pytest.skip("the filesystem of the temporary folder has no files without a name")
        return request.param == "unnamed"

    def test_a_file_appears_when_it_is_complete(self, tmp_path, unnamed):
        path = tmp_path / "m.plan"
        path.write_bytes(b"old")
        with atomic_write(path) as file:
            file.write(b"new")
            file.flush()
            assert (os.listdir(tmp_path) == ["m.plan"]) == unnamed
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["m.plan"]

    def test_its_mode_is_that_of_any_new_file(self, tmp_path, unnamed):
        before = os.umask(0o027)
        try:
            with atomic_write(tmp_path / "m.plan") as file:
                file.write(b"new")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "m.plan").stat().st_mode) == 0o640

    def test_temporaries_of_a_dead_process_are_found_by_their_tag(self, tmp_path):
        # Ended without cleaning up, on a filesystem that needs names.
        script = (
            "import os, sys; from pathlib import Path; from trt_native import files\n"
            "files._open_unnamed = lambda folder: None\n"
            "files.set_temporary_tag(sys.argv[1])\n"
            "with files.atomic_write(Path(sys.argv[2])) as file: os._exit(0)"
        )
        for token in ("aaaa", "bbbb"):
            subprocess.run([sys.executable, "-c", script, token, tmp_path / "m.plan"], check=True)
        (tmp_path / "m.plan").touch()
        assert len(os.listdir(tmp_path)) == 3
        remove_temporaries(tmp_path, "aaaa")
        (left,) = set(os.listdir(tmp_path)) - {"m.plan"}
        assert ".bbbb-" in left
        remove_temporaries(tmp_path / "none", "aaaa")
