// Runs a TensorRT plan once: .npy files in, .npy files out. See README.md next to this file.

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

#include "layouts.h"
#include "npy.h"

namespace {

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

using Arrays = std::map<std::string, Array>;

// Where the plan begins: Ultralytics' exports have metadata in front, after four bytes with its
// length. A plan itself begins with "ftrt", that of TensorRT-RTX with "vtrt".
size_t offset_of_plan(Bytes const& file) {
  if (file.size() < 8) return 0;
  size_t length = 0;
  for (int i = 3; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(file[i]);
  if (length < 2 || length + 8 > file.size()) return 0;
  char const* const tag = file.data() + 4 + length;
  bool const follows = std::memcmp(tag, "ftrt", 4) == 0 || std::memcmp(tag, "vtrt", 4) == 0;
  return follows ? 4 + length : 0;
}

// The input in whose memory an output is written; older TensorRT has no such outputs.
template <class Engine>
auto alias_of(Engine const& engine, char const* name, int)
    -> decltype(engine.getAliasedInputTensor(name)) {
  return engine.getAliasedInputTensor(name);
}
template <class Engine>
char const* alias_of(Engine const&, char const*, long) {
  return nullptr;
}

// The layout of a tensor in a profile. That of C order has no channels.
Layout layout_of(nvinfer1::ICudaEngine const& engine, std::string const& name, int profile) {
  using Format = nvinfer1::TensorFormat;
  switch (engine.getTensorFormat(name.c_str(), profile)) {
    case Format::kLINEAR: return {0, 0, true};
    case Format::kHWC: return {2, 1, true};
    case Format::kHWC8: return {2, 8, true};
    case Format::kHWC16: return {2, 16, true};
    case Format::kDHWC: return {3, 1, true};
    case Format::kDHWC8: return {3, 8, true};
    case Format::kCHW2: return {2, 2, false};
    case Format::kCHW4: return {2, 4, false};
    case Format::kCHW16: return {2, 16, false};
    case Format::kCHW32: return {2, 32, false};
    case Format::kCDHW32: return {3, 32, false};
    default: fail("tensor '" + name + "' has a layout that is not read here");
  }
}

Bytes packed(Array const& array, Layout const& layout, bool pack) {
  size_t const item = array.descr.back() - '0';
  std::vector<int64_t> const shape(array.shape.d, array.shape.d + array.shape.nbDims);
  return layout.channels == 0 ? array.data : repack(array.data, shape, item, layout, pack);
}

// Replaces weights, by the names that they have in the graph that TensorRT parsed.
void refit(nvinfer1::ICudaEngine& engine, Arrays const& weights, Logger& logger) {
  std::unique_ptr<nvinfer1::IRefitter> refitter{nvinfer1::createInferRefitter(engine, logger)};
  if (!refitter) fail("the plan's weights cannot be replaced" + logger.reason);
  for (auto const& [name, array] : weights) {
    nvinfer1::Weights const known = refitter->getWeightsPrototype(name.c_str());
    int64_t const count = array.data.size() / (array.descr.back() - '0');
    if (known.count <= 0) fail("'" + name + "' is not a weight that can be replaced");
    if (type_name(known.type, name) != array.descr || known.count != count)
      fail("weight '" + name + "' needs " + std::to_string(known.count) + " elements of type " +
           type_name(known.type, name));
    if (!refitter->setNamedWeights(name.c_str(), {known.type, array.data.data(), count}))
      fail("TensorRT does not take weight '" + name + "'" + logger.reason);
  }
  char const* missing = nullptr;
  if (refitter->getMissingWeights(1, &missing) > 0)
    fail(std::string("TensorRT has merged these weights with '") + missing + "': give it, too");
  if (!refitter->refitCudaEngine()) fail("TensorRT did not replace the weights" + logger.reason);
}

void run(std::string const& plan, Arrays& inputs, Arrays const& weights,
         std::string const& folder) {
  Bytes const bytes = read_file(plan);
  size_t const offset = offset_of_plan(bytes);
  Logger logger;
  std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(logger)};
  if (!runtime) fail("TensorRT gives no runtime" + logger.reason);
  std::unique_ptr<nvinfer1::ICudaEngine> engine{
      runtime->deserializeCudaEngine(bytes.data() + offset, bytes.size() - offset)};
  if (!engine) fail(plan + ": TensorRT cannot load it" + logger.reason);
  if (!weights.empty()) refit(*engine, weights, logger);
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
    std::string const type = type_name(engine->getTensorDataType(name.c_str()), name);
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
    if (!is_host(name)) data = packed(inputs[name], layout_of(*engine, name, profile), true);
    bind(name, is_host(name) ? data.data() : memory[name].reserve(data.size()));
    if (is_host(name)) continue;
    void* const to = memory[name].pointer;
    check(cudaMemcpyAsync(to, data.data(), data.size(), cudaMemcpyDefault, stream), "copy " + name);
  }
  std::map<std::string, std::string> places;  // the tensor in whose memory an output is
  for (auto const& name : out) {
    Dims const shape = context->getTensorShape(name.c_str());
    char const* const alias = alias_of(*engine, name.c_str(), 0);
    places[name] = alias == nullptr || *alias == 0 ? name : alias;
    if (places[name] != name) {
      bind(name, memory[places[name]].pointer);
    } else if (std::count(shape.d, shape.d + std::max(shape.nbDims, 0), -1) > 0) {
      allocators[name].memory = &memory[name];
      context->setOutputAllocator(name.c_str(), &allocators[name]);
    } else {
      Array empty{type_name(engine->getTensorDataType(name.c_str()), name), shape, {}};
      empty.data.resize(bytes_of(empty.descr, shape));
      size_t const size = packed(empty, layout_of(*engine, name, profile), true).size();
      if (is_host(name)) host[name].resize(size + 1);
      bind(name, is_host(name) ? host[name].data() : memory[name].reserve(size));
    }
  }
  if (!context->enqueueV3(stream)) fail("TensorRT did not run the plan" + logger.reason);
  check(cudaStreamSynchronize(stream), "run the plan");

  for (auto const& name : out) {
    Dims const shape =
        allocators.count(name) ? allocators[name].shape : context->getTensorShape(name.c_str());
    Array array{type_name(engine->getTensorDataType(name.c_str()), name), shape, {}};
    array.data.resize(bytes_of(array.descr, shape));
    Layout const layout = is_host(name) ? Layout{0, 0, true} : layout_of(*engine, name, profile);
    array.data = packed(array, layout, true);
    void const* from = host.count(name) ? host[name].data() : memory[places[name]].pointer;
    char* const to = array.data.data();
    check(cudaMemcpy(to, from, array.data.size(), cudaMemcpyDefault), "copy " + name);
    array.data = packed(array, layout, false);
    write_npy(folder + "/" + std::regex_replace(name, std::regex("/"), "_") + ".npy", array);
    std::printf("%s %s %s\n", name.c_str(), array.descr.c_str(), text(shape).c_str());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3)
    fail("usage: loader PLAN OUTPUT_FOLDER [INPUT=FILE.npy]... [--refit WEIGHT=FILE.npy...]");
  Arrays inputs, weights, *given = &inputs;
  for (int i = 3; i < argc; ++i) {
    if (std::strcmp(argv[i], "--refit") == 0) {
      given = &weights;
      continue;
    }
    char const* split = std::strrchr(argv[i], '=');
    if (split == nullptr) fail(std::string("'") + argv[i] + "': write INPUT=FILE.npy");
    (*given)[std::string(argv[i], split - argv[i])] = read_npy(split + 1);
  }
  run(argv[1], inputs, weights, argv[2]);
  return 0;
} catch (std::exception const& error) {
  std::string line = error.what();
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "error: %s\n", line.c_str());
  return 1;
}
