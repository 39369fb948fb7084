// Runs a TensorRT plan once: .npy files in, .npy files out. See README.md next to this file.

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using nvinfer1::DataType, nvinfer1::Dims;
using Bytes = std::vector<char>;

[[noreturn]] void fail(std::string const& message) { throw std::runtime_error(message); }

void check(cudaError_t code, std::string const& action) {
  if (code != cudaSuccess) fail("cannot " + action + ": " + cudaGetErrorString(code));
}

// TensorRT's interfaces report a failure to the log alone: its first error is kept.
struct Logger : nvinfer1::ILogger {
  std::string reason;
  void log(Severity severity, char const* message) noexcept override {
    if (severity <= Severity::kERROR && reason.empty()) reason = std::string(": ") + message;
  }
};

struct DeviceMemory {
  void* pointer{nullptr};
  ~DeviceMemory() { cudaFree(pointer); }
  void* reserve(size_t size) {  // an empty tensor needs an address too
    cudaFree(pointer);
    if (cudaMalloc(&pointer, std::max<size_t>(size, 1)) != cudaSuccess) pointer = nullptr;
    return pointer;
  }
};

// For outputs whose shape is known only once the plan has run.
struct OutputAllocator : nvinfer1::IOutputAllocator {
  DeviceMemory* memory{nullptr};
  Dims shape{};
  void* reallocateOutputAsync(char const*, void*, uint64_t size, uint64_t, cudaStream_t) override {
    return memory->reserve(size);
  }
  void notifyShape(char const*, Dims const& reported) noexcept override { shape = reported; }
};

// An element type as .npy files write it; its size in bytes is the last digit. They know neither
// bfloat16 nor FP8: raw bytes stand for those, as where NumPy saves the types of ml_dtypes.
std::string type_of(nvinfer1::ICudaEngine const& engine, std::string const& name) {
  switch (engine.getTensorDataType(name.c_str())) {
    case DataType::kFLOAT: return "<f4";
    case DataType::kHALF: return "<f2";
    case DataType::kBF16: return "<V2";
    case DataType::kFP8: return "<V1";
    case DataType::kINT8: return "|i1";
    case DataType::kUINT8: return "|u1";
    case DataType::kINT32: return "<i4";
    case DataType::kINT64: return "<i8";
    case DataType::kBOOL: return "|b1";
    default: fail("tensor '" + name + "' has a packed type, which .npy files have not");
  }
}

std::string text(Dims const& shape) {  // as Python writes a tuple
  std::string result = "(";
  for (int i = 0; i < shape.nbDims; ++i) result += std::to_string(shape.d[i]) + ", ";
  return result + ")";
}

size_t bytes_of(std::string const& type, Dims const& shape) {
  size_t size = type.back() - '0';
  for (int i = 0; i < shape.nbDims; ++i) size *= static_cast<size_t>(shape.d[i]);
  return size;
}

struct Array {
  std::string descr;
  Dims shape{};
  Bytes data;
};

Bytes read_file(std::string const& path) {
  Bytes content(std::filesystem::file_size(path));
  std::ifstream file(path, std::ios::binary);
  if (content.empty() || !file.read(content.data(), content.size())) fail(path + ": is unreadable");
  return content;
}

// The format is described in numpy.lib.format.
Array read_npy(std::string const& path) {
  Bytes const content = read_file(path);
  if (content.size() < 12 || std::memcmp(content.data(), "\x93NUMPY", 6) != 0)
    fail(path + ": not a .npy file");
  size_t const width = content[6] == 1 ? 2 : 4;  // of the header's length, by the format's version
  size_t end = 8 + width;
  for (size_t i = 0; i < width; ++i)
    end += size_t{static_cast<unsigned char>(content[8 + i])} << (8 * i);
  if (end > std::min<size_t>(content.size(), 10000)) fail(path + ": its .npy header is too long");
  std::string const header(content.data() + 8 + width, content.data() + end);
  std::smatch descr, order, shape;
  if (!std::regex_search(header, descr, std::regex("'descr': *'([^']{3,})'")) ||
      !std::regex_search(header, order, std::regex("'fortran_order': *(True|False)")) ||
      !std::regex_search(header, shape, std::regex("'shape': *\\(([0-9, ]*)\\)")))
    fail(path + ": its .npy header cannot be read");
  Array array{descr[1], {}, {content.begin() + end, content.end()}};
  std::istringstream extents(shape[1]);
  for (std::string extent; std::getline(extents >> std::ws, extent, ',');) {
    if (array.shape.nbDims == Dims::MAX_DIMS) fail(path + ": has more axes than TensorRT allows");
    array.shape.d[array.shape.nbDims++] = std::stoll(extent);
  }
  if (order[1] == "True" && array.shape.nbDims > 1)
    fail(path + ": is in Fortran order; save it with numpy.ascontiguousarray");
  return array;
}

void write_npy(std::string const& path, Array const& array) {
  std::string header = "{'descr': '" + array.descr + "', 'fortran_order': False, ";
  header += "'shape': " + text(array.shape) + ", }";
  header.append(63 - (10 + header.size()) % 64, ' ').push_back('\n');
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8).put(static_cast<char>(header.size() & 0xff));
  file.put(static_cast<char>(header.size() >> 8)) << header;
  if (!file.write(array.data.data(), array.data.size()).flush()) fail(path + ": cannot be written");
}

void run(std::string const& plan, std::map<std::string, Array>& inputs, std::string const& folder) {
  Bytes const bytes = read_file(plan);
  Logger logger;
  std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(logger)};
  if (!runtime) fail("TensorRT gives no runtime" + logger.reason);
  std::unique_ptr<nvinfer1::ICudaEngine> engine{
      runtime->deserializeCudaEngine(bytes.data(), bytes.size())};
  if (!engine) fail(plan + ": TensorRT cannot load it" + logger.reason);
  std::unique_ptr<nvinfer1::IExecutionContext> context{engine->createExecutionContext()};
  if (!context) fail("TensorRT gives no execution context" + logger.reason);

  std::vector<std::string> in, out;
  for (int i = 0; i < engine->getNbIOTensors(); ++i) {
    char const* name = engine->getIOTensorName(i);
    bool const is_input = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    (is_input ? in : out).push_back(name);
  }
  for (auto const& name : in) {
    if (!inputs.count(name)) fail("input '" + name + "' is missing: give " + name + "=FILE.npy");
    Array const& array = inputs[name];
    std::string const type = type_of(*engine, name);
    if (array.descr.substr(1) != type.substr(1) || array.descr[0] == '>')
      fail("input '" + name + "' needs the type " + type + ", its file has " + array.descr);
    if (array.data.size() != bytes_of(type, array.shape))
      fail("input '" + name + "': its file holds fewer or more bytes than its shape needs");
  }
  for (auto const& [name, array] : inputs)
    if (std::find(in.begin(), in.end(), name) == in.end()) fail("'" + name + "' is not an input");

  int profile = 0;
  auto const fits = [&](std::string const& name) {
    using Which = nvinfer1::OptProfileSelector;
    Dims const& shape = inputs[name].shape;
    Dims const low = engine->getProfileShape(name.c_str(), profile, Which::kMIN);
    Dims const high = engine->getProfileShape(name.c_str(), profile, Which::kMAX);
    auto const below = [](int64_t a, int64_t b) { return a <= b; };
    return low.nbDims == shape.nbDims && std::equal(low.d, low.d + low.nbDims, shape.d, below) &&
           std::equal(shape.d, shape.d + shape.nbDims, high.d, below);
  };
  while (!std::all_of(in.begin(), in.end(), fits))
    if (++profile == engine->getNbOptimizationProfiles())
      fail("no profile of the plan allows these shapes");

  cudaStream_t stream{};
  check(cudaStreamCreate(&stream), "create a stream");
  std::unique_ptr<CUstream_st, decltype(&cudaStreamDestroy)> const owner{stream, cudaStreamDestroy};
  if (profile > 0 && !context->setOptimizationProfileAsync(profile, stream))
    fail("TensorRT does not take profile " + std::to_string(profile) + logger.reason);
  std::map<std::string, DeviceMemory> memory;
  std::map<std::string, Bytes> host;
  std::map<std::string, OutputAllocator> allocators;
  auto const is_host = [&](std::string const& name) {
    return engine->getTensorLocation(name.c_str()) == nvinfer1::TensorLocation::kHOST;
  };
  auto const bind = [&](std::string const& name, void* address) {
    if (address == nullptr) fail("too little GPU memory for '" + name + "'");
    if (!context->setTensorAddress(name.c_str(), address))
      fail("TensorRT refuses the address of '" + name + "'" + logger.reason);
  };
  for (auto const& name : in) {
    auto& [descr, shape, data] = inputs[name];
    if (!context->setInputShape(name.c_str(), shape))
      fail("input '" + name + "' cannot have the shape " + text(shape) + logger.reason);
    bind(name, is_host(name) ? data.data() : memory[name].reserve(data.size()));
    if (is_host(name)) continue;
    void* const to = memory[name].pointer;
    check(cudaMemcpyAsync(to, data.data(), data.size(), cudaMemcpyDefault, stream), "copy " + name);
  }
  for (auto const& name : out) {
    Dims const shape = context->getTensorShape(name.c_str());
    if (std::count(shape.d, shape.d + std::max(shape.nbDims, 0), -1) > 0) {
      allocators[name].memory = &memory[name];
      context->setOutputAllocator(name.c_str(), &allocators[name]);
    } else {
      size_t const size = bytes_of(type_of(*engine, name), shape);
      if (is_host(name)) host[name].resize(size + 1);
      bind(name, is_host(name) ? host[name].data() : memory[name].reserve(size));
    }
  }
  if (!context->enqueueV3(stream)) fail("TensorRT did not run the plan" + logger.reason);
  check(cudaStreamSynchronize(stream), "run the plan");

  for (auto const& name : out) {
    Dims const shape =
        allocators.count(name) ? allocators[name].shape : context->getTensorShape(name.c_str());
    Array array{type_of(*engine, name), shape, {}};
    array.data.resize(bytes_of(array.descr, shape));
    void const* from = host.count(name) ? host[name].data() : memory[name].pointer;
    char* const to = array.data.data();
    check(cudaMemcpy(to, from, array.data.size(), cudaMemcpyDefault), "copy " + name);
    write_npy(folder + "/" + std::regex_replace(name, std::regex("/"), "_") + ".npy", array);
    std::printf("%s %s %s\n", name.c_str(), array.descr.c_str(), text(shape).c_str());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) fail("usage: loader PLAN OUTPUT_FOLDER [INPUT=FILE.npy]...");
  std::map<std::string, Array> inputs;
  for (int i = 3; i < argc; ++i) {
    char const* split = std::strrchr(argv[i], '=');
    if (split == nullptr) fail(std::string("'") + argv[i] + "': write INPUT=FILE.npy");
    inputs[std::string(argv[i], split - argv[i])] = read_npy(split + 1);
  }
  run(argv[1], inputs, argv[2]);
  return 0;
} catch (std::exception const& error) {
  std::string line = error.what();
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "error: %s\n", line.c_str());
  return 1;
}
