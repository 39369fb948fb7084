// Arrays in .npy files, whose format is described in numpy.lib.format.

#pragma once

#include <NvInferRuntime.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using nvinfer1::DataType, nvinfer1::Dims;
using Bytes = std::vector<char>;

[[noreturn]] inline void fail(std::string const& message) { throw std::runtime_error(message); }

// An element type as .npy files write it; its size in bytes is the last digit. They know neither
// bfloat16 nor FP8: raw bytes stand for those, as where NumPy saves the types of ml_dtypes.
inline std::string type_name(DataType type, std::string const& name) {
  switch (type) {
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

inline std::string text(Dims const& shape) {  // as Python writes a tuple
  std::string result = "(";
  for (int i = 0; i < shape.nbDims; ++i) result += std::to_string(shape.d[i]) + ", ";
  return result + ")";
}

inline size_t bytes_of(std::string const& type, Dims const& shape) {
  size_t size = type.back() - '0';
  for (int i = 0; i < shape.nbDims; ++i) size *= static_cast<size_t>(shape.d[i]);
  return size;
}

struct Array {
  std::string descr;
  Dims shape{};
  Bytes data;
};

inline Bytes read_file(std::string const& path) {
  Bytes content(std::filesystem::file_size(path));
  std::ifstream file(path, std::ios::binary);
  if (content.empty() || !file.read(content.data(), content.size())) fail(path + ": is unreadable");
  return content;
}

inline Array read_npy(std::string const& path) {
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

inline void write_npy(std::string const& path, Array const& array) {
  std::string header = "{'descr': '" + array.descr + "', 'fortran_order': False, ";
  header += "'shape': " + text(array.shape) + ", }";
  header.append(63 - (10 + header.size()) % 64, ' ').push_back('\n');
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8).put(static_cast<char>(header.size() & 0xff));
  file.put(static_cast<char>(header.size() >> 8)) << header;
  if (!file.write(array.data.data(), array.data.size()).flush()) fail(path + ": cannot be written");
}
