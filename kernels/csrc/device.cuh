// The few instructions of sm_80 and later that the kernels are written in, each as a function. No arithmetic of
// attention here. Off the card, tests/kernels/emulation/emulation.h gives functions of the same names and meanings.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

// Storage only: two bytes that are widened before any sum.
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

#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define LAUNCH(kernel, blocks, threads, bytes, stream, ...) kernel<<<blocks, threads, bytes, stream>>>(__VA_ARGS__)

constexpr unsigned FULL_WARP = 0xffffffffu;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Half x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
    return f;
}
__device__ inline float widen(Bfloat x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

__device__ inline void narrow(float x, float &to) { to = x; }
__device__ inline void narrow(float x, Half &to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ inline void narrow(float x, Bfloat &to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

// Two numbers in one register, the first in the low half.
template <class T> __device__ uint32_t pack(float low, float high);
template <> __device__ inline uint32_t pack<Half>(float low, float high) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
template <> __device__ inline uint32_t pack<Bfloat>(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// sum [16 x 8] += a [16 x 16] b [16 x 8]. Lane l holds rows l / 4 and l / 4 + 8 of a and of the sum, and column l / 4 of b.
template <class T> __device__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <> __device__ inline void multiply<Half>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ inline void multiply<Bfloat>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of two-byte numbers from shared memory: lane l names row l % 8 of matrix l / 8 and gets, of each
// matrix, row l / 4, columns 2 (l % 4) and the next (transposed: column l / 4, those two rows).
__device__ inline uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ inline void load_matrices(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_transposed(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes from global to shared memory in the background; zeros if not `wanted`, and then `from` is not read.
__device__ inline void copy_async(void *to, const void *from, bool wanted) {
    const int bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
__device__ inline void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most the last `LEFT` closed groups of this thread's copies are on their way.
template <int LEFT> __device__ inline void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
