// What one warp does with a tile of K and V in shared memory: scores, weights, sums of V. Its 16 rows of queries and its OWN
// keys meet as on tensor cores, whose layout of results is used for all types.
#pragma once

namespace {

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

template <class Element, int ROW_WARPS_, int KEY_WARPS_, int KEYS_, int STAGES_> struct Shape {
    using T = Element;
    static constexpr bool TENSOR = sizeof(T) == 2;
    static constexpr int ROW_WARPS = ROW_WARPS_, KEY_WARPS = KEY_WARPS_, KEYS = KEYS_, STAGES = STAGES_;
    static constexpr int WARPS = ROW_WARPS * KEY_WARPS, THREADS = 32 * WARPS, ROWS = 16 * ROW_WARPS;
    static constexpr int OWN = KEYS / KEY_WARPS;              // keys of a tile that one warp takes
    static constexpr int RING = STAGES + 1;                   // tiles whose slots are known
    static constexpr int CHUNK = 16 / sizeof(T), CHUNKS = WIDTH / CHUNK;
    static constexpr int STRIDE = WIDTH + CHUNK;              // 16 bytes more: eight rows lie in different banks
    static constexpr int WIDE = WIDTH + 8;                    // the same for float32 results
    static constexpr int TILE = KEYS * STRIDE;
    static_assert(OWN <= 32 && OWN % (TENSOR ? 16 : 8) == 0 && ROWS <= THREADS && KEYS <= THREADS && THREADS % CHUNKS == 0);
    static_assert(WARPS * 16 * WIDE * sizeof(float) <= 2 * STAGES * TILE * sizeof(T), "results take the place of K and V");
};

template <class T> __device__ void put4(T *to, const float (&x)[4]) {
    struct alignas(4 * sizeof(T)) {
        T of[4];
    } four;
#pragma unroll
    for (int i = 0; i < 4; i++) narrow(x[i], four.of[i]);
    *reinterpret_cast<decltype(four) *>(to) = four;
}

// scores [16, OWN] of one warp, spread over its lanes as a tensor core leaves them: lane l holds rows l / 4 and that + 8,
// and of each eight keys 2 (l % 4) and the next.
template <class S>
__device__ void score(float (&scores)[S::OWN / 8][4], const typename S::T *q, const typename S::T *k, int lane) {
    if constexpr (S::TENSOR) {
        q += lane % 16 * S::STRIDE + lane / 16 * 8;
        k += (lane / 16 * 8 + lane % 8) * S::STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (int d = 0; d < WIDTH; d += 16) {
            uint32_t a[4], b[4];
            load_matrices(a, q + d);
#pragma unroll
            for (int n = 0; n < S::OWN / 16; n++) {
                load_matrices(b, k + n * 16 * S::STRIDE + d);
                multiply<typename S::T>(scores[2 * n], a, b[0], b[1]);
                multiply<typename S::T>(scores[2 * n + 1], a, b[2], b[3]);
            }
        }
    } else {
        q += lane / 4 * S::STRIDE;
        k += lane % 4 * 2 * S::STRIDE;
#pragma unroll 4
        for (int d = 0; d < WIDTH; d += 4) {
            const float4 a0 = *reinterpret_cast<const float4 *>(q + d);
            const float4 a1 = *reinterpret_cast<const float4 *>(q + 8 * S::STRIDE + d);
#pragma unroll
            for (int n = 0; n < S::OWN / 8; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float4 b = *reinterpret_cast<const float4 *>(k + (n * 8 + e) * S::STRIDE + d);
                    scores[n][e] += a0.x * b.x + a0.y * b.y + a0.z * b.z + a0.w * b.w;
                    scores[n][2 + e] += a1.x * b.x + a1.y * b.y + a1.z * b.z + a1.w * b.w;
                }
            }
        }
    }
}

// One step of the online softmax, in base 2: scores become weights, and `sums` what they would be had the largest score so far
// been known before. top [2], sum [2]: the largest score and the sum of weights of this lane's two rows; of `sum` each lane of
// a row has a share.
template <class S>
__device__ void soften(float (&scores)[S::OWN / 8][4], float (&top)[2], float (&sum)[2], float (&sums)[WIDTH / 8][4]) {
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = top[half];
#pragma unroll
        for (int n = 0; n < S::OWN / 8; n++) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
        const float origin = most == -INFINITY ? 0 : most; // nothing seen so far
        shrink[half] = exp2f(top[half] - origin);
        top[half] = most;
        sum[half] *= shrink[half];
#pragma unroll
        for (int n = 0; n < S::OWN / 8; n++) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                scores[n][e] = exp2f(scores[n][e] - origin);
                sum[half] += scores[n][e];
            }
        }
    }
    if (__any_sync(FULL_WARP, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
        for (int d = 0; d < WIDTH / 8; d++) {
            sums[d][0] *= shrink[0], sums[d][1] *= shrink[0];
            sums[d][2] *= shrink[1], sums[d][3] *= shrink[1];
        }
    }
}

// sums [16, WIDTH] += weights [16, OWN] of V, spread alike, by plain arithmetic. APART: what a row does not see cannot harm
// it, whatever it is.
template <class S, bool APART>
__device__ void gather_plainly(float (&sums)[WIDTH / 8][4], const float (&weights)[S::OWN / 8][4], const typename S::T *v,
                               int lane) {
    v += lane % 4 * 2;
#pragma unroll 1
    for (int key = 0; key < S::OWN; key++, v += S::STRIDE) {
        float w0 = 0, w1 = 0;
#pragma unroll
        for (int i = 0; i < S::OWN / 4; i++) { // an array in registers cannot be indexed
            if (key / 8 == i / 2 && key % 2 == i % 2) w0 = weights[i / 2][i % 2], w1 = weights[i / 2][2 + i % 2];
        }
        w0 = __shfl_sync(FULL_WARP, w0, (lane & ~3) | (key % 8 / 2));
        w1 = __shfl_sync(FULL_WARP, w1, (lane & ~3) | (key % 8 / 2));
#pragma unroll
        for (int d = 0; d < WIDTH; d += 8) {
            const float x = widen(v[d]), y = widen(v[d + 1]);
            if (!APART || w0 != 0) sums[d / 8][0] += w0 * x, sums[d / 8][1] += w0 * y;
            if (!APART || w1 != 0) sums[d / 8][2] += w1 * x, sums[d / 8][3] += w1 * y;
        }
    }
}

// The same on tensor cores where they take the type: a NaN in V is then one of all rows.
template <class S>
__device__ void gather(float (&sums)[WIDTH / 8][4], const float (&weights)[S::OWN / 8][4], const typename S::T *v, int lane) {
    if constexpr (S::TENSOR) {
        v += (lane / 8 % 2 * 8 + lane % 8) * S::STRIDE + lane / 16 * 8;
#pragma unroll
        for (int n = 0; n < S::OWN / 16; n++) {
            using T = typename S::T;
            const float(&w)[4] = weights[2 * n], (&x)[4] = weights[2 * n + 1];
            const uint32_t a[4] = {pack<T>(w[0], w[1]), pack<T>(w[2], w[3]), pack<T>(x[0], x[1]), pack<T>(x[2], x[3])};
#pragma unroll
            for (int d = 0; d < WIDTH; d += 16) {
                uint32_t b[4];
                load_transposed(b, v + n * 16 * S::STRIDE + d);
                multiply<T>(sums[d / 8], a, b[0], b[1]);
                multiply<T>(sums[d / 8 + 1], a, b[2], b[3]);
            }
        }
    } else {
        gather_plainly<S, false>(sums, weights, v, lane);
    }
}

// Whether a warp's keys of V hold a NaN or an infinity.
template <class S> __device__ bool spoilt(const typename S::T *v, int dim_v, int lane) {
    struct alignas(16) {
        uint32_t of[4];
    } words;
    bool found = false;
    for (int i = lane; i < S::OWN * S::CHUNKS; i += 32) {
        if (i % S::CHUNKS * S::CHUNK >= dim_v) continue;
        words = *reinterpret_cast<const decltype(words) *>(v + i / S::CHUNKS * S::STRIDE + i % S::CHUNKS * S::CHUNK);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            constexpr uint32_t ENDLESS = exponent_bits<typename S::T>;
            found |= (words.of[w] & ENDLESS) == ENDLESS;
            if (S::TENSOR) found |= (words.of[w] >> 16 & ENDLESS) == ENDLESS;
        }
    }
    return __any_sync(FULL_WARP, found);
}

} // namespace
