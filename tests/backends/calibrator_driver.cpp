// Calls a calibrator as TensorRT 10 does: through its virtual functions, in the builder's order.
//
// The interface is declared here in the order of TensorRT 10's public headers (IVersionedInterface,
// IInt8Calibrator), so that this compiler lays the table of functions out as theirs did. The test
// gives the address of the C++ object under a Python object of TensorRT's bindings.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace {

struct InterfaceInfo {
    char const *kind;
    int32_t major;
    int32_t minor;
};

class Calibrator {
public:
    virtual int32_t language() const noexcept = 0;
    virtual InterfaceInfo info() const noexcept = 0;
    virtual ~Calibrator() noexcept = default;
    virtual int32_t batchSize() const noexcept = 0;
    virtual bool batch(void *bindings[], char const *names[], int32_t count) noexcept = 0;
    virtual void const *readCache(std::size_t &length) noexcept = 0;
    virtual void writeCache(void const *data, std::size_t length) noexcept = 0;
    virtual int32_t algorithm() noexcept = 0;
};

using Copy = void (*)(void *, void const *, std::size_t);

void copyOnHost(void *to, void const *from, std::size_t size) { std::memcpy(to, from, size); }

} // namespace

// What TensorRT would have seen of one calibration.
struct Trace {
    std::string kind;             // of the interface
    int32_t algorithm;            // 2: entropy, 3: min-max
    int32_t batchSize;            // 0 where it was not asked for
    bool accepted;                // the cache
    std::string cache;            // as it was read
    std::vector<void *> pointers; // of every batch, in the order of the names
    std::vector<std::string> contents;
};

extern "C" {

// Read the cache; accept it if it begins with `header`, as TensorRT does with its own. Else ask for
// batches until there are none or `limit` was reached, and look at each pointer's memory at once,
// with `copy` where it is not the CPU's. Then hand `result` over as the new cache: after a hit, too.
Trace *calibrate(void *object, char const *header, char const *result, int32_t count,
                 char const *names[], std::size_t const sizes[], int32_t limit, Copy copy)
{
    auto *calibrator = static_cast<Calibrator *>(object);
    auto *trace = new Trace{calibrator->info().kind, calibrator->algorithm(), 0, false, {}, {}, {}};
    std::size_t length = 0;
    if (auto const *cache = static_cast<char const *>(calibrator->readCache(length)))
        trace->cache.assign(cache, length);
    trace->accepted = !trace->cache.empty() && trace->cache.rfind(header, 0) == 0;
    if (!trace->accepted) {
        trace->batchSize = calibrator->batchSize();
        std::vector<void *> bindings(count, nullptr);
        for (int32_t i = 0; i < limit && calibrator->batch(bindings.data(), names, count); ++i) {
            for (int32_t input = 0; input < count; ++input) {
                trace->pointers.push_back(bindings[input]);
                std::string content(sizes[input], '\0');
                (copy ? copy : copyOnHost)(content.data(), bindings[input], content.size());
                trace->contents.push_back(content);
            }
        }
    }
    calibrator->writeCache(result, std::strlen(result));
    return trace;
}

char const *trace_kind(Trace const *t) { return t->kind.c_str(); }
int32_t trace_algorithm(Trace const *t) { return t->algorithm; }
int32_t trace_batch_size(Trace const *t) { return t->batchSize; }
bool trace_accepted(Trace const *t) { return t->accepted; }
std::size_t trace_cache(Trace const *t, char const **data)
{
    *data = t->cache.data();
    return t->cache.size();
}
int32_t trace_reads(Trace const *t) { return static_cast<int32_t>(t->pointers.size()); }
void *trace_pointer(Trace const *t, int32_t index) { return t->pointers[index]; }
char const *trace_content(Trace const *t, int32_t index) { return t->contents[index].data(); }
void trace_free(Trace *t) { delete t; }
}
