from __future__ import annotations

import dataclasses
import hashlib
import os

import pytest

from trt_native import files
from trt_native.errors import PlanError
from trt_native.plans.plan import Plan
from trt_native.plans.plan_file import PlanFile


@pytest.fixture(params=["unnamed", "named"])
def path(request, tmp_path, monkeypatch):
    if request.param == "named":
        monkeypatch.setattr(files, "_open_unnamed", lambda folder: None)
    return tmp_path / "m.plan"


def parts(plan):
    return bytes(plan.data[:40]), bytes(plan.data[40:])


def written(plan, file):
    for part in parts(plan):
        file.write(part)
    return dataclasses.replace(plan, data=file.content())


def test_the_bytes_are_hashed_and_readable_as_they_come(path, plan):
    with PlanFile(path) as file:
        assert bytes(file.content()) == b""
        file.write(parts(plan)[0])
        assert bytes(file.content()) == parts(plan)[0]
        file.write(parts(plan)[1])
        assert file.sha256 == hashlib.sha256(plan.data).hexdigest()
        content = file.content()
    assert content == plan.data  # the file is gone
    assert os.listdir(path.parent) == []


def test_saving_publishes_the_file_itself(path, plan):
    path.write_bytes(b"old")
    with PlanFile(path) as file:
        streamed = written(plan, file)
        inode = os.fstat(file.new.file.fileno()).st_ino
        assert path.read_bytes() == b"old"
        streamed.save(path, written=file)
    assert path.stat().st_ino == inode
    assert sorted(os.listdir(path.parent)) == ["m.plan", "m.plan.json"]
    assert Plan.load(path).data == plan.data
    assert Plan.load(path).manifest == plan.manifest


def test_another_plan_is_written_instead(path, plan):
    with PlanFile(path) as file:
        file.write(b"another plan")
        plan.save(path, written=file)
    with PlanFile(path) as file:  # nothing came, as for a plan of the cache
        plan.save(path, written=file)
    assert sorted(os.listdir(path.parent)) == ["m.plan", "m.plan.json"]
    assert Plan.load(path).data == plan.data


def test_a_failed_save_leaves_what_was_there(path, plan):
    path.write_bytes(b"old")
    path.with_name("m.plan.json").write_text('{"name": "of another program"}')
    with PlanFile(path) as file, pytest.raises(PlanError, match="is not from trt-native"):
        written(plan, file).save(path, written=file)
    assert sorted(os.listdir(path.parent)) == ["m.plan", "m.plan.json"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_missing(tmp_path):
    with (
        PlanFile(tmp_path / "none" / "m.plan") as file,
        pytest.raises(PlanError, match=r"cannot write .*: No such file or directory"),
    ):
        file.write(b"vtrt")


def test_a_full_disk_leaves_nothing(small_disk):
    with (
        PlanFile(small_disk / "m.plan") as file,
        pytest.raises(PlanError, match=r"No space left on device.*no partial file was written"),
    ):
        file.write(bytes(1 << 20))
    assert os.listdir(small_disk) == []
