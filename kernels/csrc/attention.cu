// Attention of flat query rows over the slots of their views: decoding, trees, shared prefixes, rotated parts.
//
// One block takes one item of the work list (kernels/work.py) for one KV head: up to ROWS rows, a row being a query
// and one of the heads that share the KV head, over a run of listed slots. It streams K and V through shared memory,
// several stages ahead, where all rows use them; softmax is online in base 2 (arXiv 1805.02867), products are tensor
// core ones for two-byte types. A query in several items has partial results, which a second kernel merges exactly.
//
// Bytes: each listed slot once (K and V) per item and KV head, and once more, mostly from L2, for every further ROWS
// rows; queries and outputs once; partial results, float32, written and read once. Compiled once for each WIDTH, the
// room for a head: heads of any multiple of 16 bytes up to WIDTH numbers fit. Not here: choosing items; prefill at speed.

#ifdef __CUDACC__
#include "device.cuh"
#else
#include "emulation.h"
#endif

#ifndef WIDTH
#error "compile with -DWIDTH=64, 128 or 256"
#endif

#include "tile.cuh"

// What the host passes, mirrored by kernels/cuda_attention.py. Strides in elements; the last dimension is dense.
struct Call {
    const void *q, *k, *v;
    void *out;              // [queries, heads, dim_v] in q's type
    float *lse;             // [queries, heads], natural
    float *partial;         // [pairs, heads, dim_v], where results are merged; else null
    float *partial_lse;     // [pairs, heads]
    const int *items;       // [items, 6]: pairs from, to; slots from, to; position of the first slot; the row's first new slot
    const int *pairs;       // [pairs, 4]: query; last and first visible position; positions to turn the query by
    const int *slots;       // pool rows
    const int *positions;   // stored position of each of `slots`, or null: consecutive in an item
    const int64_t *tree;    // [queries] ancestor bits, or null
    const int *merge_ptr;   // [queries + 1] into merge_list, or null: a query has at most one pair
    const int *merge_list;  // pairs of each query
    const float *sinks;     // [heads] or null
    const float *frequencies; // [turning] radians per position, or null
    int64_t q_token, q_head, k_slot, k_head, v_slot, v_head;
    int items_count, few, most_pairs; // the first `few` items have at most 16 rows, any item at most most_pairs pairs
    int queries, heads, kv_heads, dim, dim_v, turning, interleaved;
    float scale, softcap;   // softcap 0: none
};

namespace {

constexpr int NEVER = 0x7fffffff; // a position that no query sees

template <class S> struct Shared {
    int64_t tree[S::ROWS];
    alignas(16) typename S::T q[S::ROWS * S::STRIDE];
    alignas(16) typename S::T k[S::STAGES][S::TILE];
    alignas(16) typename S::T v[S::STAGES][S::TILE]; // right behind k: together they later hold every warp's sums
    int row[S::RING][S::KEYS];      // pool row of each key on its way, -1: nobody sees it, it is not read
    int position[S::RING][S::KEYS]; // stored position
    int open[S::RING][S::KEYS];     // whether all rows see it
    int query[S::ROWS], pair[S::ROWS], last[S::ROWS], first[S::ROWS], turn[S::ROWS];
    float top[S::WARPS][16], sum[S::WARPS][16];
};

__device__ bool marked(int64_t bits, int own) { return own <= 0 || (bits >> min(own - 1, 63) & 1); }

// What the rows of a block see between them, of positions and of new tokens.
struct Sight {
    int any_first, any_last, all_first, all_last;
    int64_t any_tree, all_tree;
    bool turned;
};

template <class S> __device__ Sight survey(const Shared<S> &shared, int rows, int lane) {
    Sight sight{NEVER, -1, -NEVER - 1, NEVER, 0, -1, false};
    unsigned turned = 0;
    for (int r = lane; r < rows; r += 32) {
        sight.any_first = min(sight.any_first, shared.first[r]);
        sight.all_first = max(sight.all_first, shared.first[r]);
        sight.any_last = max(sight.any_last, shared.last[r]);
        sight.all_last = min(sight.all_last, shared.last[r]);
        sight.any_tree |= shared.tree[r];
        sight.all_tree &= shared.tree[r];
        turned |= shared.turn[r] != 0;
    }
    sight.any_first = __reduce_min_sync(FULL_WARP, sight.any_first);
    sight.all_first = __reduce_max_sync(FULL_WARP, sight.all_first);
    sight.any_last = __reduce_max_sync(FULL_WARP, sight.any_last);
    sight.all_last = __reduce_min_sync(FULL_WARP, sight.all_last);
    const uint32_t any_low = __reduce_or_sync(FULL_WARP, static_cast<uint32_t>(sight.any_tree));
    const uint32_t any_high = __reduce_or_sync(FULL_WARP, static_cast<uint32_t>(sight.any_tree >> 32));
    const uint32_t all_low = __reduce_and_sync(FULL_WARP, static_cast<uint32_t>(sight.all_tree));
    const uint32_t all_high = __reduce_and_sync(FULL_WARP, static_cast<uint32_t>(sight.all_tree >> 32));
    sight.any_tree = static_cast<int64_t>(static_cast<uint64_t>(any_high) << 32 | any_low);
    sight.all_tree = static_cast<int64_t>(static_cast<uint64_t>(all_high) << 32 | all_low);
    sight.turned = __any_sync(FULL_WARP, turned);
    return sight;
}

// Turn the queries in shared memory, a row a warp at a time. Angles are reduced in float64: positions may be large.
template <class S> __device__ void turn_queries(Shared<S> &shared, const Call &call, int rows, int warp, int lane) {
    for (int r = warp; r < rows; r += S::WARPS) {
        if (shared.turn[r] == 0) continue;
        typename S::T *q = shared.q + r * S::STRIDE;
        for (int i = lane; i < call.turning; i += 32) {
            const double half_turns = static_cast<double>(call.frequencies[i]) * shared.turn[r] * 0.3183098861837907;
            float sine, cosine;
            sincospif(static_cast<float>(half_turns - 2.0 * rint(0.5 * half_turns)), &sine, &cosine);
            typename S::T &low = q[call.interleaved ? 2 * i : i], &high = q[call.interleaved ? 2 * i + 1 : i + call.turning];
            const float a = widen(low), b = widen(high);
            narrow(a * cosine - b * sine, low);
            narrow(b * cosine + a * sine, high);
        }
    }
}

// Each warp's sums, side by side in shared memory; then a row a warp at a time, over the warps that divided its keys.
template <class S>
__device__ void write_results(Shared<S> &shared, const Call &call, const float (&sums)[WIDTH / 8][4], const float (&top)[2],
                              const float (&sum)[2], int rows, int row_begin, int kv_head) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int group = call.heads / call.kv_heads;
    await_copies<0>();
    __syncthreads();
    float *const all = reinterpret_cast<float *>(shared.k[0]);
    float *const ours = all + (warp * 16 + lane / 4) * S::WIDE + lane % 4 * 2;
#pragma unroll
    for (int d = 0; d < WIDTH / 8; d++) {
        *reinterpret_cast<float2 *>(ours + d * 8) = make_float2(sums[d][0], sums[d][1]);
        *reinterpret_cast<float2 *>(ours + 8 * S::WIDE + d * 8) = make_float2(sums[d][2], sums[d][3]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float whole = sum[half]; // of the four lanes that share a row
        whole += __shfl_xor_sync(FULL_WARP, whole, 1);
        whole += __shfl_xor_sync(FULL_WARP, whole, 2);
        const int line = lane / 4 + half * 8;
        if (lane % 4 == 0) shared.top[warp][line] = top[half], shared.sum[warp][line] = whole;
    }
    __syncthreads();
    for (int r = warp; r < rows; r += S::WARPS) {
        const int from = r / 16 * S::KEY_WARPS, line = r % 16, head = kv_head * group + (row_begin + r) % group;
        const bool direct = call.partial == nullptr;
        float most = direct && call.sinks ? call.sinks[head] * LOG2_E : -INFINITY;
        const float sink = most;
        for (int w = 0; w < S::KEY_WARPS; w++) most = fmaxf(most, shared.top[from + w][line]);
        const float origin = most == -INFINITY ? 0 : most;
        float weight[S::KEY_WARPS], total = exp2f(sink - origin);
#pragma unroll
        for (int w = 0; w < S::KEY_WARPS; w++) {
            weight[w] = exp2f(shared.top[from + w][line] - origin);
            total += weight[w] * shared.sum[from + w][line];
        }
        const float share = total == 0 ? 0 : 1 / total;
        const int64_t at = static_cast<int64_t>(direct ? shared.query[r] : shared.pair[r]) * call.heads + head;
        for (int d = lane * 4; d < call.dim_v; d += 128) {
            float x[4] = {};
#pragma unroll
            for (int w = 0; w < S::KEY_WARPS; w++) {
                const float4 y = *reinterpret_cast<const float4 *>(all + ((from + w) * 16 + line) * S::WIDE + d);
                x[0] += weight[w] * y.x, x[1] += weight[w] * y.y, x[2] += weight[w] * y.z, x[3] += weight[w] * y.w;
            }
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] *= share;
            if (direct)
                put4(static_cast<typename S::T *>(call.out) + at * call.dim_v + d, x);
            else
                put4(call.partial + at * call.dim_v + d, x);
        }
        if (lane == 0) (direct ? call.lse : call.partial_lse)[at] = total == 0 ? -INFINITY : LN_2 * (origin + log2f(total));
    }
}

template <class S> __global__ void __launch_bounds__(S::THREADS, 1) attend_items(const __grid_constant__ Call call) {
    using T = typename S::T;
    DYNAMIC_SHARED(memory);
    Shared<S> &shared = *reinterpret_cast<Shared<S> *>(memory);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int row_warp = warp / S::KEY_WARPS, key_warp = warp % S::KEY_WARPS;
    const int group = call.heads / call.kv_heads;
    // KV heads follow each other first, then the rows of an item: blocks that run together read what lies together.
    const int kv_head = static_cast<int>(blockIdx.x) % call.kv_heads, rest = static_cast<int>(blockIdx.x) / call.kv_heads;
    const int row_tiles = (call.most_pairs * group + S::ROWS - 1) / S::ROWS;
    const int *item = call.items + 6LL * (rest / row_tiles);
    const int row_begin = rest % row_tiles * S::ROWS;
    const int pair_begin = item[0], slot_begin = item[2], slot_end = item[3], base = item[4], own_begin = item[5];
    const int rows = min((item[1] - pair_begin) * group - row_begin, S::ROWS);
    if (rows <= 0) return;
    const int tiles = (slot_end - slot_begin + S::KEYS - 1) / S::KEYS;

    // The rows, and the slots of the first tiles.
    int next_row[S::STAGES], next_position[S::STAGES];
    const bool lists = thread < S::KEYS; // threads that look up slots, one of each tile
    auto look_up = [&](int tile, int &row, int &position) {
        const int s = slot_begin + tile * S::KEYS + thread;
        if (!lists || s >= slot_end) return;
        row = call.slots[s];
        position = call.positions ? call.positions[s] : base + (s - slot_begin);
    };
#pragma unroll
    for (int t = 0; t < S::STAGES; t++) look_up(t, next_row[t], next_position[t]);
    if (thread < S::ROWS) {
        const bool real = thread < rows;
        const int pair = pair_begin + (row_begin + thread) / group;
        const int *entry = call.pairs + 4LL * pair;
        shared.pair[thread] = pair;
        shared.query[thread] = real ? entry[0] : 0;
        shared.last[thread] = real ? entry[1] : -1;
        shared.first[thread] = real ? entry[2] : 0;
        shared.turn[thread] = real && call.frequencies ? entry[3] : 0;
        shared.tree[thread] = real && call.tree ? call.tree[entry[0]] : -1;
    }
    __syncthreads();

    // Queries, as they are. Behind a head of less than WIDTH there are zeros, in K too.
    for (int i = thread; i < S::ROWS * S::CHUNKS; i += S::THREADS) {
        const int r = i / S::CHUNKS, d = i % S::CHUNKS * S::CHUNK, head = kv_head * group + (row_begin + r) % group;
        const bool wanted = r < rows && d < call.dim;
        const T *from = static_cast<const T *>(call.q);
        if (wanted) from += shared.query[r] * call.q_token + head * call.q_head + d;
        copy_async(shared.q + r * S::STRIDE + d, from, wanted);
    }
    close_copies();
    const int chunk = thread % S::CHUNKS * S::CHUNK;
    for (int key = thread / S::CHUNKS; key < S::STAGES * S::KEYS; key += S::THREADS / S::CHUNKS) {
        const float zeros[4] = {};
        if (chunk >= call.dim) put4(reinterpret_cast<float *>(shared.k[0] + key * S::STRIDE + chunk), zeros);
    }

    const Sight sight = survey(shared, rows, lane);
    auto note = [&](int tile, int row, int position) {
        const int s = slot_begin + tile * S::KEYS + thread, own = s - own_begin, at = tile % S::RING;
        if (!lists) return;
        if (s >= slot_end) row = -1, position = NEVER;
        const bool any = s < slot_end && sight.any_first <= position && position <= sight.any_last && marked(sight.any_tree, own);
        shared.row[at][thread] = any ? row : -1;
        shared.position[at][thread] = position;
        shared.open[at][thread] = any && sight.all_first <= position && position <= sight.all_last && marked(sight.all_tree, own);
    };
    auto load = [&](int tile) {
        T *to_k = shared.k[tile % S::STAGES] + chunk, *to_v = shared.v[tile % S::STAGES] + chunk;
        const T *from_k = static_cast<const T *>(call.k) + kv_head * call.k_head + chunk;
        const T *from_v = static_cast<const T *>(call.v) + kv_head * call.v_head + chunk;
#pragma unroll 4
        for (int key = thread / S::CHUNKS; key < S::KEYS; key += S::THREADS / S::CHUNKS) {
            const int64_t row = shared.row[tile % S::RING][key];
            if (chunk < call.dim) copy_async(to_k + key * S::STRIDE, row < 0 ? call.k : from_k + row * call.k_slot, row >= 0);
            if (chunk < call.dim_v) copy_async(to_v + key * S::STRIDE, row < 0 ? call.v : from_v + row * call.v_slot, row >= 0);
        }
    };
#pragma unroll
    for (int t = 0; t < S::STAGES; t++) note(t, next_row[t], next_position[t]);
    __syncthreads();
#pragma unroll
    for (int t = 0; t < S::STAGES - 1; t++) {
        if (t < tiles) load(t);
        close_copies();
    }
    if (sight.turned) {
        await_copies<S::STAGES - 1>();
        __syncthreads();
        turn_queries(shared, call, rows, warp, lane);
    }

    float sums[WIDTH / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    const float to_base_2 = call.softcap > 0 ? call.softcap * LOG2_E : call.scale * LOG2_E;
    const int r0 = row_warp * 16 + lane / 4;
    const bool idle = row_warp * 16 >= rows; // this warp has no rows
    for (int tile = 0; tile < tiles; tile++) {
        await_copies<S::STAGES - 2>();
        __syncthreads(); // the tile is here for all, and all are done with the one before
        if (tile + S::STAGES - 1 < tiles) load(tile + S::STAGES - 1);
        close_copies();
        look_up(tile + S::STAGES, next_row[0], next_position[0]);

        const int at = tile % S::RING, begin = key_warp * S::OWN;
        const bool mine = lane < S::OWN;
        const bool empty = !__any_sync(FULL_WARP, mine && shared.row[at][begin + (mine ? lane : 0)] >= 0);
        if (!idle && !empty) {
            const bool open = __all_sync(FULL_WARP, !mine || shared.open[at][begin + (mine ? lane : 0)]);
            float scores[S::OWN / 8][4] = {};
            score<S>(scores, shared.q + row_warp * 16 * S::STRIDE, shared.k[tile % S::STAGES] + begin * S::STRIDE, lane);
#pragma unroll
            for (int n = 0; n < S::OWN / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float x = scores[n][e];
                    if (call.softcap > 0) x = tanhf(x * call.scale / call.softcap);
                    scores[n][e] = x * to_base_2;
                }
            }
            if (!open) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int r = r0 + e / 2 * 8;
                    const int first = shared.first[r], last = shared.last[r];
                    const int64_t bits = shared.tree[r];
#pragma unroll
                    for (int n = 0; n < S::OWN / 8; n++) {
                        const int key = begin + n * 8 + lane % 4 * 2 + e % 2, position = shared.position[at][key];
                        const int own = slot_begin + tile * S::KEYS + key - own_begin;
                        if (position < first || position > last || !marked(bits, own)) scores[n][e] = -INFINITY;
                    }
                }
            }
            soften<S>(scores, top, sum, sums);
            const T *v = shared.v[tile % S::STAGES] + begin * S::STRIDE;
            if (open || !spoilt<S>(v, call.dim_v, lane))
                gather<S>(sums, scores, v, lane);
            else
                gather_plainly<S, true>(sums, scores, v, lane);
        }
        note(tile + S::STAGES, next_row[0], next_position[0]);
    }

    write_results(shared, call, sums, top, sum, rows, row_begin, kv_head);
}

// The exact merge of a query's partial results, a head a warp: 32 at a time, by their log-sum-exps and the sink. What they
// weigh and what they hold are read at once, four results ahead: it is latency that this takes.
template <class T> __global__ void __launch_bounds__(128) merge_pairs(const __grid_constant__ Call call) {
    constexpr int PIECES = (WIDTH + 127) / 128, AHEAD = 4;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t at = 4LL * blockIdx.x + threadIdx.x / 32;
    const int query = static_cast<int>(at / call.heads), head = static_cast<int>(at % call.heads);
    if (query >= call.queries) return;
    const int begin = call.merge_ptr[query], end = call.merge_ptr[query + 1];
    float most = call.sinks ? call.sinks[head] : -INFINITY, total = most == -INFINITY ? 0 : 1, x[PIECES][4] = {};
    for (int first = begin; first < end; first += 32) {
        const int count = min(end - first, 32);
        const int64_t result = static_cast<int64_t>(lane < count ? call.merge_list[first + lane] : 0) * call.heads + head;
        const float lse = lane < count ? call.partial_lse[result] : -INFINITY;
        float4 y[AHEAD][PIECES];
        auto read = [&](int from) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float *line = call.partial + __shfl_sync(FULL_WARP, result, from + i) * call.dim_v;
#pragma unroll
                for (int n = 0; n < PIECES; n++) {
                    const int d = n * 128 + lane * 4;
                    if (from + i < count && d < call.dim_v) y[i][n] = *reinterpret_cast<const float4 *>(line + d);
                }
            }
        };
        read(0);
        float best = fmaxf(most, lse);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, step));
        const float origin = best == -INFINITY ? 0 : best, shrink = expf(most - origin), weight = expf(lse - origin);
        most = best;
        total *= shrink;
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) x[n][i] *= shrink;
        }
        for (int from = 0; from < count; from += AHEAD) {
            if (from > 0) read(from);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float w = __shfl_sync(FULL_WARP, weight, from + i);
                if (from + i >= count) continue;
                total += w;
#pragma unroll
                for (int n = 0; n < PIECES; n++) {
                    x[n][0] += w * y[i][n].x, x[n][1] += w * y[i][n].y;
                    x[n][2] += w * y[i][n].z, x[n][3] += w * y[i][n].w;
                }
            }
        }
    }
    const float share = total == 0 ? 0 : 1 / total;
#pragma unroll
    for (int n = 0; n < PIECES; n++) {
        const int d = n * 128 + lane * 4;
        if (d >= call.dim_v) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) x[n][i] *= share;
        put4(static_cast<T *>(call.out) + at * call.dim_v + d, x[n]);
    }
    if (lane == 0) call.lse[at] = total == 0 ? -INFINITY : most + logf(total);
}

template <class S> int prepare() {
    return cudaFuncSetAttribute(attend_items<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<S>));
}

template <class S> void launch(Call call, int first, int end, int most_pairs, cudaStream_t stream) {
    const int rows = most_pairs * (call.heads / call.kv_heads), row_tiles = (rows + S::ROWS - 1) / S::ROWS;
    const unsigned blocks = static_cast<unsigned>(end - first) * row_tiles * call.kv_heads;
    call.items += 6LL * first;
    call.most_pairs = most_pairs;
    if (blocks > 0) LAUNCH(attend_items<S>, blocks, S::THREADS, sizeof(Shared<S>), stream, call);
}

// How many blocks the current device holds at once; 0 if it cannot be told.
template <class S> int blocks_at_once() {
    int device = 0, processors = 0, each = 0;
    if (cudaGetDevice(&device)) return 0;
    if (cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) return 0;
    if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, attend_items<S>, S::THREADS, sizeof(Shared<S>))) return 0;
    return processors * each;
}

// Few rows: four warps share them and divide the keys. Many rows: they divide the rows and share the keys.
template <class T> using Few = Shape<T, 1, 4, 64, WIDTH == 64 ? 4 : WIDTH == 128 ? 3 : 2>;
template <class T> using Many = Shape<T, 4, 1, 32, WIDTH == 256 ? 3 : 4>;
using Single = Shape<float, 1, 4, 32, WIDTH == 64 ? 4 : WIDTH == 128 ? 3 : 2>;

template <class T> int run(const Call &call, cudaStream_t stream) {
    if constexpr (sizeof(T) == 4) {
        launch<Single>(call, 0, call.items_count, call.most_pairs, stream);
    } else {
        launch<Few<T>>(call, 0, call.few, min(call.most_pairs, 16 / (call.heads / call.kv_heads)), stream);
        launch<Many<T>>(call, call.few, call.items_count, call.most_pairs, stream);
    }
    if (call.merge_ptr && call.queries > 0) {
        const int64_t blocks = (static_cast<int64_t>(call.queries) * call.heads + 3) / 4;
        LAUNCH(merge_pairs<T>, static_cast<unsigned>(blocks), 128, 0, stream, call);
    }
    return cudaGetLastError();
}

} // namespace

// All return a cudaError_t, 0 for success.
extern "C" {
// Once per device, before the first call on it.
int forethought_prepare() {
    int error = cudaFree(nullptr); // begins the runtime, and says what is wrong with the driver
    if (!error) error = prepare<Few<Half>>();
    if (!error) error = prepare<Many<Half>>();
    if (!error) error = prepare<Few<Bfloat>>();
    if (!error) error = prepare<Many<Bfloat>>();
    if (!error) error = prepare<Single>();
    return error;
}
int forethought_attend_float16(const Call *call, void *stream) { return run<Half>(*call, static_cast<cudaStream_t>(stream)); }
int forethought_attend_bfloat16(const Call *call, void *stream) { return run<Bfloat>(*call, static_cast<cudaStream_t>(stream)); }
int forethought_attend_float32(const Call *call, void *stream) { return run<float>(*call, static_cast<cudaStream_t>(stream)); }
const char *forethought_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
int forethought_call_bytes() { return sizeof(Call); }
int forethought_blocks(int element_bytes) { return element_bytes == 4 ? blocks_at_once<Single>() : blocks_at_once<Few<Half>>(); }
int forethought_shared_bytes(int element_bytes, int row_warps) { // of a block
    if (element_bytes == 4) return sizeof(Shared<Single>);
    return row_warps == 1 ? sizeof(Shared<Few<Half>>) : sizeof(Shared<Many<Half>>);
}
}
