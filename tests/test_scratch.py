"""Folders for temporary files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from trt_native.scratch import remove_abandoned, scratch_folder

HOLD = """
import sys, time
from trt_native.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "weights").write_bytes(bytes(9))
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def aged(path):
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    return path


def test_a_folder_goes_with_its_block(place):
    with scratch_folder() as folder:
        (folder / "x").touch()
        assert folder.parent == place
        aged(folder)
        remove_abandoned()
        assert folder.exists()
    assert list(place.iterdir()) == []


def test_a_killed_process_leaves_its_folder_to_the_next(place):
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as child:
        folder = place / child.stdout.readline().strip().rpartition("/")[2]
        aged(folder)
        remove_abandoned()
        assert (folder / "weights").exists()
        child.send_signal(signal.SIGKILL)
    assert (folder / "weights").exists()
    remove_abandoned()
    assert not folder.exists()


@pytest.mark.parametrize(
    "name",
    ["trt_native-short", "trt_native-abcdefgh9", "trt-native-abcdefgh", "xtrt_native-abcdefgh"],
)
def test_others_names_stay(place, name):
    (place / name).mkdir()
    aged(place / name)
    remove_abandoned()
    assert (place / name).exists()


def test_links_files_and_new_folders_stay(place):
    (place / "kept").mkdir()
    (place / "trt_native-abcdefgh").symlink_to("kept")
    (place / "trt_native-bbbbbbbb").touch()
    aged(place / "trt_native-bbbbbbbb")
    aged(place / "kept")
    (place / "trt_native-cccccccc").mkdir()
    remove_abandoned()
    assert len(list(place.iterdir())) == 4
