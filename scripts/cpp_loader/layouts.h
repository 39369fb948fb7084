// Layouts in memory that TensorRT gives inputs and outputs besides C order.

#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

// spatial: number of axes behind that of the channels. channels: those of one vector, which is
// filled up with zeros. last: the channels are the last axis; else vectors of channels are.
struct Layout {
  int spatial{0};
  int64_t channels{1};
  bool last{true};
};

// Moves a tensor from C order to a layout, or back.
inline std::vector<char> repack(std::vector<char> const& from, std::vector<int64_t> const& shape,
                                size_t item, Layout const& layout, bool pack) {
  int const axis = static_cast<int>(shape.size()) - layout.spatial - 1;
  if (axis < 0) throw std::runtime_error("a layout of channels needs more axes");
  int64_t const channels = shape[axis];
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < axis; ++i) outer *= shape[i];
  for (size_t i = axis + 1; i < shape.size(); ++i) inner *= shape[i];
  int64_t const vectors = (channels + layout.channels - 1) / layout.channels;
  int64_t const padded = vectors * layout.channels;
  std::vector<char> to(outer * inner * (pack ? padded : channels) * item);
  for (int64_t n = 0; n < outer; ++n)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t s = 0; s < inner; ++s) {
        int64_t const plain = (n * channels + c) * inner + s;
        int64_t const vector = n * vectors + c / layout.channels;
        int64_t const packed = layout.last
                                   ? (n * inner + s) * padded + c
                                   : (vector * inner + s) * layout.channels + c % layout.channels;
        int64_t const source = pack ? plain : packed, target = pack ? packed : plain;
        std::memcpy(to.data() + target * item, from.data() + source * item, item);
      }
  return to;
}
