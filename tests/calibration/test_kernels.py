"""The shipped PTX, as far as it can be judged without a GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from trt_native.calibration.device import MEASURED_DTYPES, DeviceStatistics
from trt_native.calibration.ranges import BINS, Histogram, magnitude
from trt_native.cuda import gpu_info
from trt_native.errors import CudaError

KERNELS = resources.files("trt_native.calibration") / "kernels"
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_ptx.sh"

# What CUDA has and C++ lacks, for one thread.
SHIM = """
#include <cmath>
#include <cstring>
#include <algorithm>
#define __global__
#define __device__ static
#define __shared__ static
struct Dim { unsigned x; };
static Dim threadIdx{0}, blockIdx{0}, blockDim{1}, gridDim{1};
struct __half { unsigned short bits; };
static float __half2float(__half h) { _Float16 f; std::memcpy(&f, &h, 2); return f; }
static float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
static void __syncthreads() {}
static unsigned __shfl_xor_sync(unsigned, unsigned value, int) { return value; }
static double __ddiv_rn(double a, double b) { return a / b; }
static double __dmul_rn(double a, double b) { return a * b; }
static unsigned max(unsigned a, unsigned b) { return std::max(a, b); }
template <typename T> static void atomicAdd(T* to, T value) { *to += value; }
static void atomicMax(unsigned* to, unsigned value) { *to = std::max(*to, value); }
using std::fabs;
using std::fmin;
"""


def test_any_driver_from_cuda_12_takes_it():
    text = (KERNELS / "activations.ptx").read_text()
    assert re.search(r"^\.version 8\.0$", text, re.MULTILINE)
    assert re.search(r"^\.target sm_75$", text, re.MULTILINE)
    entries = set(re.findall(r"^\.visible \.entry (\w+)\(", text, re.MULTILINE))
    assert entries == {
        f"{kind}_{dtype}" for kind in ("abs_max", "histogram") for dtype in MEASURED_DTYPES
    }


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="no ptxas on this machine")
@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
def test_it_assembles(target, tmp_path):
    with resources.as_file(KERNELS / "activations.ptx") as ptx:
        subprocess.run(
            [shutil.which("ptxas"), f"-arch={target}", ptx, "-o", tmp_path / "cubin"], check=True
        )


def _nvcc_release():
    compiler = shutil.which("nvcc")
    if compiler is None:
        return None
    text = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True
    ).stdout
    return re.search(r"release (\d+\.\d+)", text)[1]


@pytest.mark.skipif(_nvcc_release() != "13.0", reason="it was made by nvcc 13.0, which is not here")
def test_it_is_made_of_the_source_next_to_it(tmp_path):
    subprocess.run([SCRIPT, tmp_path / "new.ptx"], check=True)
    made, shipped = (
        re.sub(r"_[0-9a-f]{8}_", "_", path.read_text())  # nvcc names variables by the file's path
        for path in (tmp_path / "new.ptx", KERNELS / "activations.ptx")
    )
    assert made == shipped


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    """The kernels' source as C++, one thread doing all of the work."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    folder = tmp_path_factory.mktemp("kernels")
    source = (KERNELS / "activations.cu").read_text()
    (folder / "k.cpp").write_text(source.replace("#include <cuda_fp16.h>", SHIM))
    library = folder / "k.so"
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", folder / "k.cpp", "-o", library]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "_Float16" in done.stderr:
        pytest.skip("this g++ has no _Float16")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("dtype", MEASURED_DTYPES)
@pytest.mark.parametrize("kind", ["normal", "sparse", "tiny", "edges"])
def test_the_arithmetic_is_that_of_numpy(on_the_cpu, rng, dtype, kind):
    values = {
        "normal": rng.standard_normal(5001),
        "sparse": np.where(rng.random(5000) < 0.98, 0, rng.standard_normal(5000)),
        "tiny": rng.standard_normal(3000) * 2e-7,
        "edges": np.concatenate([np.arange(-2048, 2049) / 2048, np.arange(2048) / 2047]),
    }[kind].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    peak = ctypes.c_uint(0)
    count = ctypes.c_ulonglong(values.size)
    pointer = ctypes.c_void_p(values.ctypes.data)
    getattr(on_the_cpu, f"abs_max_{dtype}")(pointer, count, ctypes.byref(peak))
    found = float(np.uint32(peak.value).view(np.float32))
    assert found == magnitude(values)
    expected = Histogram(found)
    expected.add(values)
    counts = np.zeros(BINS, np.int64)
    kernel = getattr(on_the_cpu, f"histogram_{dtype}")
    kernel(pointer, count, ctypes.c_double(found), ctypes.c_void_p(counts.ctypes.data))
    np.testing.assert_array_equal(counts, expected.counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_largest_value(on_the_cpu, bad):
    values = np.array([1.0, bad, 3e38], np.float32)
    peak = ctypes.c_uint(0)
    on_the_cpu.abs_max_float32(
        ctypes.c_void_p(values.ctypes.data), ctypes.c_ulonglong(3), ctypes.byref(peak)
    )
    assert not np.isfinite(np.uint32(peak.value).view(np.float32))


def test_without_a_gpu_it_says_so():
    if gpu_info() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(
        CudaError, match=r"^cannot prepare the kernels of the calibration: this machine has no"
    ):
        DeviceStatistics(["x"])
