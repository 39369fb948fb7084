"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trt_native import files
from trt_native.errors import SpecError
from trt_native.files import (
    as_path,
    atomic_write,
    check_writable,
    is_within,
    open_regular_file,
    read_text_file,
    remove_temporaries,
    save_with_json,
    sha256_of_file,
)


@pytest.mark.parametrize("given", ["a\0b", "\ud800.onnx", 5, None])
def test_what_no_path_can_be_is_refused(given):
    with pytest.raises(SpecError, match="path of a file"):
        as_path(given)
    assert as_path("\udcff.onnx") == Path("\udcff.onnx")  # a byte that is not UTF-8


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


def test_a_file_to_read_must_not_be_replaced(tmp_path):
    model = tmp_path / "m.onnx"
    model.touch()
    (tmp_path / "link.onnx").symlink_to(model)
    check_writable(model, reads=[None, tmp_path / "missing"])
    for path in (model, tmp_path / "link.onnx", tmp_path / "." / "m.onnx"):
        with pytest.raises(SpecError, match="it is one of the files to read"):
            check_writable(path, reads=[None, model])


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("a", True),
        ("a/../b", True),
        ("../sibling", False),
        ("a/../../sibling", False),
        ("inner", True),
        ("outer", False),
        ("outer/x", False),
        ("loop", False),
    ],
)
def test_paths_within_a_folder(tmp_path, path, inside):
    folder = (tmp_path / "folder").resolve()
    folder.mkdir()
    (folder / "inner").symlink_to("a")
    (folder / "outer").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    if path == "loop" and sys.version_info >= (3, 13):
        inside = True  # resolved as far as it can be
    assert is_within(folder / path, folder) == inside


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular_file(tmp_path / name) as file:
            assert file.read() == b"content"
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="is a pipe or a device, not a file"):
            open_regular_file(path)
    with pytest.raises(IsADirectoryError):
        open_regular_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular_file(tmp_path / "missing")


def test_text_files_have_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_TEXT_BYTES", 1024)
    path = tmp_path / "m.json"
    path.write_bytes(b"x" * 1024)
    assert read_text_file(path) == b"x" * 1024
    path.write_bytes(b"x" * 1025)
    with pytest.raises(OSError, match=r"is larger than 1\.0 KiB"):
        read_text_file(path)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 21) + 3])
def test_sha256_of_a_file(tmp_path, size):
    content, read = bytes(range(256)) * (size // 256) + b"." * (size % 256), []
    (tmp_path / "f").write_bytes(content)
    assert sha256_of_file(tmp_path / "f", read.append) == hashlib.sha256(content).hexdigest()
    assert sha256_of_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()
    assert read == sorted(set(read))
    assert read[-1:] == ([size] if size else [])


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("document", [None, {"producer": "new"}])
def test_a_file_and_its_json_are_both_new_or_both_as_they_were(
    tmp_path, monkeypatch, step, exists, document
):
    path, json_path = tmp_path / "m.plan", tmp_path / "m.plan.json"
    if exists:
        save_with_json(path, b"old", json_path, {"producer": "old"})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    real = getattr(os, step) if step == "fsync" else Path.replace

    def fail(target, *arguments):
        name = target.name if step == "replace" else os.readlink(f"/proc/self/fd/{target}")
        if step == "fsync" or (name.startswith(".m.plan.") and "json" not in name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(target, *arguments)

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="No space left"):
        save_with_json(path, b"new", json_path, document)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_is_not_replaced_by_a_file(tmp_path, durable):
    (tmp_path / "m.plan").mkdir()
    with (
        pytest.raises(OSError, match="is a folder, a pipe or a device"),
        atomic_write(tmp_path / "m.plan", durable=durable),
    ):
        pass
    assert os.listdir(tmp_path) == ["m.plan"]


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
