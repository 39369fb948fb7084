from __future__ import annotations

import hashlib
import os

import pytest

from trt_native.errors import PlanError
from trt_native.plans import stored_content
from trt_native.plans.plan import Plan
from trt_native.plans.stored_content import StoredContent, new_memory

BYTES = bytes(range(256)) * 4
FRONT = b"in front"


@pytest.fixture(params=[1, 7, 256, 512, 1000, 1023, 1024, 4096])
def chunk(request, monkeypatch):
    monkeypatch.setattr(stored_content, "_CHUNK", request.param)


@pytest.fixture
def content(tmp_path):
    path = tmp_path / "m.plan"
    path.write_bytes(FRONT + BYTES)
    with path.open("rb") as file:
        return StoredContent.of(path, file, len(FRONT))


@pytest.mark.usefixtures("chunk")
def test_all_bytes_and_their_hash(content):
    assert content.size == len(BYTES)
    assert content.read() == BYTES
    memory = new_memory(len(BYTES))
    digest = hashlib.sha256(BYTES).hexdigest()
    assert content.sha256() == content.sha256(memory) == digest
    assert memory == BYTES


@pytest.mark.usefixtures("chunk")
def test_reading_in_any_order(content):
    with content.open() as reader:
        found = b""
        while part := reader.read(300):
            assert len(part) <= 300
            found += part
        assert found == BYTES
        assert reader.read(1) == b""
        for offset, whence, position in ((10, 0, 10), (5, 1, 16), (-3, 2, 1021), (-2, 1, 1020)):
            assert reader.seek(offset, whence)
            assert reader.read(1) == BYTES[position : position + 1]
        assert not reader.seek(-1, 0)
        assert not reader.seek(1, 2)
        assert reader.seek(0, 2)
        assert reader.read(4) == b""


def replaced(path):
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


def overwritten(path):
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [replaced, overwritten, lambda path: os.truncate(path, 20)])
def test_a_file_that_changed_is_not_read(content, change):
    change(content.path)
    for read in (content.read, content.sha256, lambda: content.head(4)):
        with pytest.raises(PlanError, match="changed since it was opened; open the plan again"):
            read()


def test_a_change_while_it_is_read_is_noticed(content):
    def read():
        with content.open() as reader:
            overwritten(content.path)
            return reader.read(4)

    with pytest.raises(PlanError, match="changed since"):
        read()


def test_a_file_that_is_gone(content):
    content.path.unlink()
    with pytest.raises(PlanError, match=r"cannot read .*No such file"):
        content.read()


class TestPlans:
    def test_an_opened_plan_is_the_loaded_one(self, tmp_path, plan):
        path = plan.save(tmp_path / "m.plan")
        loaded, opened = Plan.load(path), Plan.open(path)
        assert isinstance(opened.content, StoredContent)
        assert isinstance(loaded.content, memoryview)
        assert opened == loaded
        assert (opened.size, opened.sha256, opened.header) == (
            len(plan.data),
            hashlib.sha256(plan.data).hexdigest(),
            plan.header,
        )
        assert repr(opened) == repr(loaded)
        foreign = Plan.open(path, ignore_manifest=True)
        assert foreign.sha256 == opened.sha256
        assert opened.save(tmp_path / "copy.plan").read_bytes() == plan.data

    def test_both_need_the_file_only_as_long_as_they_say(self, tmp_path, plan):
        path = plan.save(tmp_path / "m.plan")
        loaded, opened = Plan.load(path), Plan.open(path)
        path.unlink()
        assert loaded.data == plan.data
        with pytest.raises(PlanError, match="No such file"):
            opened.data  # noqa: B018

    @pytest.mark.parametrize("read", [Plan.load, Plan.open])
    @pytest.mark.parametrize("length", [0, 4, 31, 32, 95, 97])
    def test_another_length_is_an_error(self, tmp_path, plan, read, length):
        path = plan.save(tmp_path / "m.plan")
        path.write_bytes((bytes(plan.data) + b"+")[:length])
        with pytest.raises(PlanError, match=r"m\.plan: "):
            read(path)

    @pytest.mark.parametrize("read", [Plan.load, Plan.open])
    def test_another_byte_is_an_error(self, tmp_path, plan, read):
        path = plan.save(tmp_path / "m.plan")
        path.write_bytes(bytes(plan.data[:-1]) + b"+")
        with pytest.raises(PlanError, match="SHA-256 differs"):
            read(path)
