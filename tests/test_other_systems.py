"""What a build, a run and an inspection need of the system: nothing that Linux alone has.

A child process loses what Python has on Linux and not on Windows, once other packages are loaded,
which have chosen their own ways by then.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_models

ROOT = Path(__file__).parents[1]

# Of Python's documentation: "Availability: Unix", and "not Windows".
WITHOUT = r'''
import asyncio, concurrent.futures, json, mmap, multiprocessing, os, shutil, signal, subprocess
import sys, tempfile, time, uuid

import cuda.core, filelock, ml_dtypes, numpy, onnx, onnx.reference, onnx_ir, rich, typer
import onnx_ir.passes.common, rich.progress, rich.table, rich.tree
import tensorrt_rtx

MODULES = "fcntl grp posix pty pwd readline resource spwd syslog termios tty".split()
NAMES = {
    os: "chown fchdir fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg"
    " getpgid getpgrp getpriority getrlimit getsid getuid kill killpg lchown major memfd_create"
    " mkfifo mknod nice openpty pipe2 posix_fadvise posix_fallocate posix_spawn pread preadv pwrite"
    " pwritev sched_getaffinity sched_setaffinity sched_yield sendfile set_blocking setsid splice"
    " statvfs sync sysconf uname wait wait4 O_CLOEXEC O_DIRECTORY O_DSYNC O_NOFOLLOW O_NONBLOCK"
    " O_SYNC O_TMPFILE",
    signal: "SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGPROF SIGQUIT SIGSTOP"
    " SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH SIGXCPU SIGXFSZ alarm pause pthread_kill pthread_sigmask"
    " setitimer sigwait",
    time: "clock_gettime clock_gettime_ns CLOCK_BOOTTIME CLOCK_MONOTONIC",
    mmap: "MAP_SHARED MAP_PRIVATE PROT_READ MADV_SEQUENTIAL MADV_DONTNEED MADV_WILLNEED",
}
for name in MODULES:
    sys.modules[name] = None
for module, names in NAMES.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

shutil._use_fd_functions = False  # these two are as their modules are there
tempfile.TemporaryFile = tempfile.NamedTemporaryFile
opened = os.open
def open_file(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *arguments, **options)
os.open = open_file

class NoProcess:
    """Windows passes no descriptors on."""
    def __init__(self, *arguments, pass_fds=(), start_new_session=False, **options):
        raise ValueError("pass_fds not supported on Windows")
subprocess.Popen = NoProcess
sys.platform = "win32"
'''

BUILD = """
from trt_native import BuildConfig, ConversionConfig, Plan, ProfileSpec, build_plan, convert_onnx
from trt_native.inspection import inspect_plan

profile = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
plan = build_plan(folder + "/m.onnx", BuildConfig(profiles=(profile,)))
plan.save(folder + "/m.plan")
assert Plan.open(folder + "/m.plan").sha256 == plan.sha256
convert_onnx(folder + "/m.onnx", folder + "/n.onnx", ConversionConfig(precision="fp16"))
print(inspect_plan(Plan.open(folder + "/m.plan")))
import trt_native.runtime, trt_native.bench, trt_native.verify, trt_native.deploy
from trt_native import Engine, EngineSessionPool, Session, SessionPool
from trt_native.cuda.memory import copy_host
from trt_native.errors import CudaError

ones = numpy.ones(2**23, numpy.float32)
copied = numpy.empty_like(ones)
copy_host(copied, ones)
assert (copied == 1).all()
try:
    Engine(folder + "/m.plan")
except CudaError as error:
    print(error.message)
"""

PROGRAM = """
from trt_native.cli import main

sys.argv[0] = "trt-native"
main(words)
"""


def child(folder, code, *words):
    script = folder / "child.py"
    head = f"folder, words = {str(folder)!r}, {list(words)!r}\n"
    script.write_text(f"{WITHOUT}\n{head}{code}")
    return subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "TRT_NATIVE_CACHE": str(folder / "cache"),
            "HOME": str(folder),
            "COLUMNS": "150",
        },
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("windows")
    tiny_models.conv(folder / "m.onnx")
    return folder, child(folder, BUILD)


@pytest.mark.backend
def test_the_library_builds_inspects_and_loads(built):
    folder, result = built
    assert result.returncode == 0, result.stderr
    assert (folder / "m.plan").stat().st_size > 1000
    assert (folder / "m.plan.json").exists()
    assert (folder / "n.onnx").exists()
    assert "float16" in result.stdout or "float32" in result.stdout


@pytest.mark.backend
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--help",), "build"),
        (("inspect", "m.plan"), "TensorRT-RTX"),
        (("doctor", "m.plan"), "TensorRT-RTX"),
        (("deploy", "trtexec", "m.plan"), "tensorrt_rtx"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_commands_that_need_no_other_process(built, words, found):
    folder, _ = built
    result = child(folder, PROGRAM, *words)
    assert found in result.stdout, result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.backend
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("build", "m.onnx", "-o", "o.plan", "--dim", "batch=2", "--dim", "height=8,width=8"),
            None,
        ),
        (("inspect", "m.onnx", "--backend", "rtx"), None),
        (("run", "m.plan", "--random", "0"), "cannot find a GPU"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_other_commands_say_what_they_need(built, words, message):
    folder, _ = built
    result = child(folder, PROGRAM, *words)
    assert (message or "on Linux alone and not on win32; build in Python") in result.stderr
    assert (result.returncode, result.stderr.count("Traceback")) == (1, 0)
