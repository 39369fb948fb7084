// Calls a debug listener as TensorRT does: through its virtual functions.
//
// The interface is declared here in the order of TensorRT's public headers (IVersionedInterface,
// v_1_0::IDebugListener), so that this compiler lays the table of functions out as theirs did.
#include <cstdint>

namespace {

struct InterfaceInfo {
    char const *kind;
    int32_t major;
    int32_t minor;
};

struct Dims {
    int32_t count;
    int64_t extents[8];
};

class DebugListener {
public:
    virtual int32_t language() const noexcept = 0;
    virtual InterfaceInfo info() const noexcept = 0;
    virtual ~DebugListener() noexcept = default;
    virtual bool process(void const *address, int32_t location, int32_t type, Dims const &shape,
                         char const *name, void *stream) = 0;
};

} // namespace

extern "C" {

// 1: the listener was called (the bindings return that for whatever Python returned); -1: an exception
// came out of it.
int32_t deliver(void *object, void const *address, int32_t location, int32_t type, int32_t count,
                int64_t const *extents, char const *name, void *stream)
{
    Dims shape{count, {}};
    for (int32_t i = 0; i < count; ++i)
        shape.extents[i] = extents[i];
    try {
        return static_cast<DebugListener *>(object)->process(address, location, type, shape, name,
                                                             stream);
    } catch (...) {
        return -1;
    }
}

char const *kind(void *object) { return static_cast<DebugListener *>(object)->info().kind; }
}
