// Largest magnitudes and histograms of tensors in device memory, for calibration.
//
// activations.ptx next to this file is what is shipped: the driver compiles it for its GPU. Make it
// again, with any nvcc from CUDA 12 on, by
//
//     scripts/make_ptx.sh
//
// which lowers the PTX version to 8.0, so that every driver from CUDA 12.0 on takes it.
//
// Every kernel takes any grid and any number of elements; threads stride over the tensor. Results
// are whole numbers that are added or compared, so that they do not depend on the order of threads.

#include <cuda_fp16.h>

namespace {

constexpr int kBins = 2048;
constexpr unsigned kAllLanes = 0xffffffffu;

// bfloat16 as the upper half of a float, without a type that old headers lack.
struct BFloat16 {
  unsigned short bits;
};

__device__ float to_float(float value) { return value; }
__device__ float to_float(__half value) { return __half2float(value); }
__device__ float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

// Without its sign, a float's bits order like its value; NaN lies above infinity, so neither hides.
__device__ unsigned magnitude_bits(float value) { return __float_as_uint(value) & 0x7fffffffu; }

template <typename T>
__device__ void abs_max(const T* values, unsigned long long count, unsigned* result) {
  const unsigned long long stride = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
  unsigned long long i = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  unsigned peak = 0;
  for (; i < count; i += stride) peak = max(peak, magnitude_bits(to_float(values[i])));
  for (int offset = 16; offset > 0; offset /= 2) {
    peak = max(peak, __shfl_xor_sync(kAllLanes, peak, offset));
  }
  if (threadIdx.x % 32 == 0 && peak != 0) atomicMax(result, peak);
}

// The arithmetic of trt_native.calibration.ranges.Histogram.add, operation by operation: double,
// a division, a product, the lesser of that and the last bin, cut to a whole number.
template <typename T>
__device__ void histogram(const T* values, unsigned long long count, double limit,
                          unsigned long long* result) {
  __shared__ unsigned bins[kBins];
  for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) bins[bin] = 0;
  __syncthreads();
  const unsigned long long stride = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
  unsigned long long i = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  // Equal bins in a row are counted in a register: in tensors that are mostly zero, all threads
  // would wait for one another at bin 0.
  int last = 0;
  unsigned run = 0;
  for (; i < count; i += stride) {
    const double magnitude = fabs(static_cast<double>(to_float(values[i])));
    const double place = __dmul_rn(__ddiv_rn(magnitude, limit), static_cast<double>(kBins));
    const int bin = static_cast<int>(fmin(place, static_cast<double>(kBins - 1)));
    if (bin != last && run != 0) {
      atomicAdd(&bins[last], run);
      run = 0;
    }
    last = bin;
    ++run;
  }
  if (run != 0) atomicAdd(&bins[last], run);
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) {
    if (bins[bin] != 0) atomicAdd(&result[bin], static_cast<unsigned long long>(bins[bin]));
  }
}

}  // namespace

#define TRT_NATIVE_KERNELS(suffix, type)                                                        \
  extern "C" __global__ void abs_max_##suffix(const type* values, unsigned long long count,     \
                                              unsigned* result) {                               \
    abs_max(values, count, result);                                                             \
  }                                                                                             \
  extern "C" __global__ void histogram_##suffix(const type* values, unsigned long long count,   \
                                                double limit, unsigned long long* result) {     \
    histogram(values, count, limit, result);                                                    \
  }

TRT_NATIVE_KERNELS(float32, float)
TRT_NATIVE_KERNELS(float16, __half)
TRT_NATIVE_KERNELS(bfloat16, BFloat16)
