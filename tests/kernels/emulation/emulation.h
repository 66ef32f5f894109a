// A card on the host, for kernels/csrc compiled by a plain C++ compiler: each thread of a block is a fiber, so that
// barriers, shuffles and matrix fragments mean what they mean on the card. It looks for what a card would let pass:
// shared memory starts as NaN; background copies land at once in some warps and only when waited for in others; threads
// run in an order that changes from block to block; lanes that call different things together, or never meet, are an
// error, as is a copy that is not aligned or leaves shared memory. Not a model of speed, nor of races within a warp.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) unsigned char *const name = emulation::shared.data()
#define LAUNCH(kernel, blocks, threads, bytes, stream, ...) \
    ((void)(stream), emulation::launch(blocks, threads, bytes, [=] { kernel(__VA_ARGS__); }))

using std::fmax;
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline void sincospif(float x, float *sine, float *cosine) {
    *sine = static_cast<float>(std::sin(M_PI * x)), *cosine = static_cast<float>(std::cos(M_PI * x));
}

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct Index {
    unsigned x, y, z;
};
inline Index threadIdx, blockIdx;

using cudaStream_t = void *;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaDevAttrMultiProcessorCount };
constexpr std::size_t SHARED_PER_PROCESSOR = 233472;
constexpr unsigned FULL_WARP = 0xffffffffu;

namespace emulation {

constexpr std::size_t SHARED_BYTES = 232448; // most a block may have on sm_90
constexpr std::size_t STACK_BYTES = 128 << 10;

struct Copy {
    unsigned char *to;
    const void *from;
    bool wanted;
    void land() const { wanted ? (void)std::memcpy(to, from, 16) : (void)std::memset(to, 0, 16); }
};
struct Fiber {
    std::unique_ptr<unsigned char[]> stack;
    ucontext_t start;
    jmp_buf place;
    bool started, done, eager;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> closed;
};
struct Meeting { // of a warp, or of a block
    unsigned long held = 0;
    int arrived = 0;
    const char *what = nullptr;
    void *argument[32] = {};
};

inline std::vector<unsigned char> shared;
inline std::vector<Fiber> fibers;
inline std::vector<Meeting> warps;
inline Meeting block;
inline int current, threads_now;
inline unsigned long progress;
inline std::function<void()> body;
inline jmp_buf scheduler, surface;
inline std::string failure;
inline cudaError_t last_error;

[[noreturn]] inline void fail(const std::string &why) {
    failure = "emulation: " + why + ", thread " + std::to_string(current) + " of block " + std::to_string(blockIdx.x);
    last_error = cudaErrorLaunchFailure;
    _longjmp(surface, 1);
}
inline void check_shared(const void *sixteen_bytes, const char *what) {
    const std::ptrdiff_t at = static_cast<const unsigned char *>(sixteen_bytes) - shared.data();
    if (at < 0 || at + 16 > static_cast<std::ptrdiff_t>(shared.size()) || at % 16)
        fail(std::string(what) + " at shared byte " + std::to_string(at));
}
inline void yield() {
    if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}
inline void enter() {
    body();
    if (!fibers[current].open.empty()) fail("a copy never closed");
    fibers[current].done = true;
    progress++;
    _longjmp(scheduler, 1);
}
[[gnu::noinline]] inline void resume(int which) {
    Fiber &fiber = fibers[which];
    current = which;
    threadIdx = {static_cast<unsigned>(which), 0, 0};
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}
// All `count` threads of a meeting arrive with their arguments; the last lets `act` work on them, and all go on.
template <class Act> void meet(Meeting &meeting, int seat, int count, const char *what, void *argument, Act act) {
    if (meeting.arrived > 0 && std::strcmp(meeting.what, what) != 0)
        fail(std::string(what) + " while others are at " + meeting.what);
    meeting.what = what;
    meeting.argument[seat] = argument;
    const unsigned long now = meeting.held;
    if (++meeting.arrived == count) {
        act(meeting.argument);
        meeting.arrived = 0;
        meeting.held++;
        progress++;
        return;
    }
    while (meeting.held == now) yield();
}
template <class Act> void meet_warp(const char *what, void *argument, Act act) {
    meet(warps[current / 32], current % 32, 32, what, argument, act);
}
[[gnu::noinline]] inline void run_block(unsigned index) {
    blockIdx = {index, 0, 0};
    std::memset(shared.data(), 0xff, shared.size());
    block = Meeting{};
    for (Meeting &warp : warps) warp = Meeting{};
    for (int t = 0; t < threads_now; t++) {
        Fiber &fiber = fibers[t];
        fiber.started = fiber.done = false;
        fiber.eager = (index + t / 32) % 2;
        fiber.open.clear(), fiber.closed.clear();
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK_BYTES;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, enter, 0);
    }
    static unsigned long before;
    static int turn, left;
    const int stride = 2 * static_cast<int>(index % 61) + 1, n = threads_now; // odd: a permutation of a power of two
    do {
        before = progress, left = 0;
        for (turn = 0; turn < n; turn++) {
            const int which = (turn * stride + static_cast<int>(index)) % n;
            if (fibers[which].done) continue;
            left++;
            resume(which);
        }
        if (left > 0 && progress == before) fail(std::string("threads wait for each other for ever, some at ") +
                                                 (warps[current / 32].arrived ? warps[current / 32].what : "a barrier"));
    } while (left > 0);
}
template <class Body> void launch(unsigned blocks, int threads, std::size_t bytes, Body what) {
    static unsigned index;
    if (bytes > SHARED_BYTES || threads % 32 != 0 || (threads & (threads - 1)) != 0) {
        failure = "emulation: a launch of " + std::to_string(threads) + " threads and " + std::to_string(bytes) + " bytes";
        last_error = cudaErrorInvalidValue;
        return;
    }
    shared.resize(bytes);
    body = what;
    threads_now = threads;
    warps.resize(threads / 32);
    if (fibers.size() < static_cast<std::size_t>(threads)) fibers.resize(threads);
    for (Fiber &fiber : fibers)
        if (!fiber.stack) fiber.stack = std::make_unique<unsigned char[]>(STACK_BYTES);
    if (_setjmp(surface) != 0) return;
    for (index = 0; index < blocks; index++) run_block(index);
}

inline float half_to_float(uint16_t bits) {
    static const std::vector<float> table = [] {
        std::vector<float> all(1 << 16);
        for (int i = 0; i < 1 << 16; i++) {
            const int exponent = i >> 10 & 31, fraction = i & 1023;
            const float size = std::ldexp(fraction + (exponent ? 1024.0f : 0.0f), max(exponent, 1) - 25);
            all[i] = (i >> 15 ? -1.0f : 1.0f) * (exponent == 31 ? fraction ? NAN : INFINITY : size);
        }
        return all;
    }();
    return table[bits];
}
inline uint16_t float_to_half(float x) { // to the nearest, ties to even
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return 0x7fff;
    const float size = std::fabs(x);
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent;
    std::frexp(size, &exponent);
    if (size == 0 || exponent < -13) exponent = -13; // subnormal
    const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 11 - exponent)));
    return static_cast<uint16_t>(sign | (units + ((exponent + 13) << 10)));
}

} // namespace emulation

struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};
// All ones in NaN and infinity.
template <class T> constexpr uint32_t exponent_bits = 0x7f800000;
template <> constexpr uint32_t exponent_bits<Half> = 0x7c00;
template <> constexpr uint32_t exponent_bits<Bfloat> = 0x7f80;

inline float widen(float x) { return x; }
inline float widen(Half x) { return emulation::half_to_float(x.bits); }
inline float widen(Bfloat x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline void narrow(float x, float &to) { to = x; }
inline void narrow(float x, Half &to) { to.bits = emulation::float_to_half(x); }
inline void narrow(float x, Bfloat &to) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to.bits = std::isnan(x) ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <class T> uint32_t pack(float low, float high) {
    T a, b;
    narrow(low, a), narrow(high, b);
    return a.bits | static_cast<uint32_t>(b.bits) << 16;
}
template <class T> float unpack(uint32_t both, int which) { return widen(T{static_cast<uint16_t>(both >> 16 * which)}); }

inline void __syncthreads() {
    emulation::meet(emulation::block, 0, emulation::threads_now, "__syncthreads", nullptr, [](void **) {});
}
template <class T> T __shfl_sync(unsigned, T x, int from) {
    struct {
        T in, out;
        int from;
    } mine{x, x, from};
    using Mine = decltype(mine);
    emulation::meet_warp("__shfl_sync", &mine, [](void **all) {
        for (int lane = 0; lane < 32; lane++) {
            Mine &to = *static_cast<Mine *>(all[lane]);
            to.out = static_cast<Mine *>(all[to.from & 31])->in;
        }
    });
    return mine.out;
}
template <class T> T __shfl_xor_sync(unsigned mask, T x, int with) {
    return __shfl_sync(mask, x, emulation::current % 32 ^ with);
}
template <class T, class Join> T reduce_warp(const char *what, T x, Join join) {
    emulation::meet_warp(what, &x, [join](void **all) {
        T joined = *static_cast<T *>(all[0]);
        for (int lane = 1; lane < 32; lane++) joined = join(joined, *static_cast<T *>(all[lane]));
        for (int lane = 0; lane < 32; lane++) *static_cast<T *>(all[lane]) = joined;
    });
    return x;
}
inline int __reduce_min_sync(unsigned, int x) { return reduce_warp("__reduce_min_sync", x, min); }
inline int __reduce_max_sync(unsigned, int x) { return reduce_warp("__reduce_max_sync", x, max); }
inline uint32_t __reduce_or_sync(unsigned, uint32_t x) {
    return reduce_warp("__reduce_or_sync", x, [](uint32_t a, uint32_t b) { return a | b; });
}
inline uint32_t __reduce_and_sync(unsigned, uint32_t x) {
    return reduce_warp("__reduce_and_sync", x, [](uint32_t a, uint32_t b) { return a & b; });
}
inline bool __any_sync(unsigned, int x) { return reduce_warp("__any_sync", x != 0, [](bool a, bool b) { return a || b; }); }
inline bool __all_sync(unsigned, int x) { return reduce_warp("__all_sync", x != 0, [](bool a, bool b) { return a && b; }); }

template <class T> void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    static_assert(sizeof(T) == 2);
    struct {
        float *sum;
        uint32_t a[4], b[2];
    } mine{sum, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    using Mine = decltype(mine);
    emulation::meet_warp("mma.m16n8k16", &mine, [](void **all) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const Mine &of = *static_cast<Mine *>(all[lane]);
            const int outer = lane / 4, inner = lane % 4 * 2;
            for (int i = 0; i < 8; i++) left[outer + i / 2 % 2 * 8][inner + i % 2 + i / 4 * 8] = unpack<T>(of.a[i / 2], i % 2);
            for (int i = 0; i < 4; i++) right[inner + i % 2 + i / 2 * 8][outer] = unpack<T>(of.b[i / 2], i % 2);
        }
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float &to = static_cast<Mine *>(all[lane])->sum[i];
                for (int k = 0; k < 16; k++) to += left[row][k] * right[k][column];
            }
    });
}

template <bool TRANSPOSED> void matrices(uint32_t (&to)[4], const void *row) {
    struct {
        const uint16_t *row;
        uint32_t *to;
    } mine{static_cast<const uint16_t *>(row), to};
    using Mine = decltype(mine);
    emulation::check_shared(row, "ldmatrix");
    emulation::meet_warp("ldmatrix", &mine, [](void **all) {
        for (int lane = 0; lane < 32; lane++)
            for (int m = 0; m < 4; m++) {
                uint32_t pair[2];
                for (int i = 0; i < 2; i++) {
                    const int line = TRANSPOSED ? lane % 4 * 2 + i : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + i;
                    pair[i] = static_cast<Mine *>(all[m * 8 + line])->row[column];
                }
                static_cast<Mine *>(all[lane])->to[m] = pair[0] | pair[1] << 16;
            }
    });
}
inline void load_matrices(uint32_t (&to)[4], const void *row) { matrices<false>(to, row); }
inline void load_transposed(uint32_t (&to)[4], const void *row) { matrices<true>(to, row); }

inline void copy_async(void *to, const void *from, bool wanted) {
    emulation::Fiber &fiber = emulation::fibers[emulation::current];
    emulation::check_shared(to, "cp.async");
    if (wanted && reinterpret_cast<uintptr_t>(from) % 16) emulation::fail("copy from an address that is no multiple of 16");
    fiber.open.push_back({static_cast<unsigned char *>(to), from, wanted});
    if (fiber.eager) fiber.open.back().land();
}
inline void close_copies() {
    emulation::Fiber &fiber = emulation::fibers[emulation::current];
    fiber.closed.push_back(std::move(fiber.open));
    fiber.open.clear();
}
template <int LEFT> void await_copies() {
    emulation::Fiber &fiber = emulation::fibers[emulation::current];
    while (fiber.closed.size() > LEFT) {
        if (!fiber.eager)
            for (const emulation::Copy &copy : fiber.closed.front()) copy.land();
        fiber.closed.pop_front();
    }
}

template <class Kernel> int cudaFuncSetAttribute(Kernel, int, std::size_t bytes) {
    return bytes > emulation::SHARED_BYTES ? cudaErrorInvalidValue : cudaSuccess;
}
inline int cudaFree(void *) { return cudaSuccess; }
inline int cudaGetDevice(int *device) { return *device = 0; }
inline int cudaDeviceGetAttribute(int *value, int, int) { return *value = 132, cudaSuccess; }
template <class Kernel> int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Kernel, int, std::size_t bytes) {
    return *blocks = static_cast<int>(SHARED_PER_PROCESSOR / (bytes + 1024)), cudaSuccess;
}
inline int cudaGetLastError() {
    const int error = emulation::last_error;
    emulation::last_error = cudaSuccess;
    return error;
}
inline const char *cudaGetErrorString(cudaError_t) { return emulation::failure.c_str(); }
