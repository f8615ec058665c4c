// The losses on the device. `make ptx` compiles this file to kernels.ptx. The tests also compile
// it for the host, where threads run in turn (testdata/fakecuda).
//
// A launch reads the scores once and writes the loss and the gradient. Sums are computed in
// float64, in an order that depends only on the batch.

#include "kernels.h"
#include "pcrm_math.h"

namespace {

template <typename T>
__device__ T *at(pcrm_address address) {
    return (T *)address;
}

// Returns to all threads the sum of x over the block. All threads must call it, and the block must
// consist of whole warps.
__device__ double block_sum(double x) {
    __shared__ double sums[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (lane == 0) sums[warp] = x;
    __syncthreads();
    x = lane < warps ? sums[lane] : 0;
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    __syncthreads();  // the next call overwrites sums
    return x;
}

// Writes the sum of a block's losses.
template <typename C>
__device__ void finish(const pcrm_common &a, double sum) {
    if (!a.sum || threadIdx.x != 0) return;
    if (gridDim.x == 1) {
        *at<C>(a.loss) = (C)(sum * a.scale);
    } else {
        at<double>(a.partials)[blockIdx.x] = sum;
    }
}

// Processes the rows of all forms other than the token form, PCRM_ITEMS per thread at a time. Calls
// load(k, row) for all of them, then use(k, row), which returns the loss.
template <typename C, typename Load, typename Use>
__device__ void each_row(const pcrm_common &a, Load load, Use use) {
    const pcrm_int tile = (pcrm_int)blockDim.x * PCRM_ITEMS;
    double sum = 0;
    for (pcrm_int base = blockIdx.x * tile; base < a.rows; base += gridDim.x * tile) {
        const pcrm_int first = base + threadIdx.x;
#pragma unroll
        for (int k = 0; k < PCRM_ITEMS; k++) {
            const pcrm_int row = first + (pcrm_int)k * blockDim.x;
            if (row < a.rows) load(k, row);
        }
#pragma unroll
        for (int k = 0; k < PCRM_ITEMS; k++) {
            const pcrm_int row = first + (pcrm_int)k * blockDim.x;
            if (row >= a.rows) continue;
            const C loss = use(k, row);
            if (a.sum) {
                sum += loss;
            } else {
                at<C>(a.loss)[row] = loss;
            }
        }
    }
    if (a.sum) finish<C>(a, block_sum(sum));
}

template <typename S, typename C>
__device__ void pair(const pcrm_pair_args &args) {
    const pcrm_common &a = args.common;
    const S *chosen = at<S>(a.chosen), *rejected = at<S>(a.rejected);
    const C *delta = at<C>(a.delta);
    C *by_chosen = at<C>(a.grad_chosen), *by_rejected = at<C>(a.grad_rejected);
    const C scale = (C)a.scale, smoothing = (C)a.smoothing, center = (C)args.center;
    C w[PCRM_ITEMS], l[PCRM_ITEMS], d[PCRM_ITEMS];
    each_row<C>(
        a,
        [&](int k, pcrm_int row) {
            w[k] = pcrm_load(chosen[row * a.chosen_stride]);
            l[k] = pcrm_load(rejected[row * a.rejected_stride]);
            d[k] = delta[row * a.delta_stride];
        },
        [&](int k, pcrm_int row) {
            const pcrm_scored<C> r = pcrm_reward_loss(w[k], l[k], d[k], smoothing, center);
            if (by_chosen) {
                by_chosen[row] = r.by_chosen * scale;
                by_rejected[row] = r.by_rejected * scale;
            }
            return r.loss;
        });
}

template <typename S, typename C>
__device__ void dpo(const pcrm_dpo_args &args) {
    const pcrm_common &a = args.common;
    const S *chosen = at<S>(a.chosen), *rejected = at<S>(a.rejected);
    const S *reference_chosen = at<S>(args.reference_chosen), *reference_rejected = at<S>(args.reference_rejected);
    const C *delta = at<C>(a.delta);
    C *by_chosen = at<C>(a.grad_chosen), *by_rejected = at<C>(a.grad_rejected);
    const C scale = (C)a.scale, smoothing = (C)a.smoothing, beta = (C)args.beta;
    C w[PCRM_ITEMS], l[PCRM_ITEMS], reference_w[PCRM_ITEMS], reference_l[PCRM_ITEMS], d[PCRM_ITEMS];
    each_row<C>(
        a,
        [&](int k, pcrm_int row) {
            w[k] = pcrm_load(chosen[row * a.chosen_stride]);
            l[k] = pcrm_load(rejected[row * a.rejected_stride]);
            reference_w[k] = pcrm_load(reference_chosen[row * args.reference_chosen_stride]);
            reference_l[k] = pcrm_load(reference_rejected[row * args.reference_rejected_stride]);
            d[k] = delta[row * a.delta_stride];
        },
        [&](int k, pcrm_int row) {
            const pcrm_implicit<C> r =
                pcrm_dpo_loss(w[k], l[k], reference_w[k], reference_l[k], d[k], beta, smoothing);
            if (by_chosen) {
                by_chosen[row] = r.by_chosen * scale;
                by_rejected[row] = r.by_rejected * scale;
            }
            at<C>(args.chosen_rewards)[row] = r.chosen_reward;
            at<C>(args.rejected_rewards)[row] = r.rejected_reward;
            return r.loss;
        });
}

struct two {
    int first, second;
};

// Returns the first positions in [from, to) where bit 0 and bit 1 of found(position) are set, or
// `to` if there is none. The whole block must call it.
template <typename Found>
__device__ two first_of_two(int from, int to, Found found) {
    __shared__ int least[2];
    two result = {to, to};
    for (int base = from; base < to && (result.first == to || result.second == to);
         base += (int)blockDim.x * PCRM_ITEMS) {
        int bits[PCRM_ITEMS];
#pragma unroll
        for (int k = 0; k < PCRM_ITEMS; k++) {  // beyond the end, load the last position instead
            const pcrm_int t = base + (pcrm_int)k * blockDim.x + threadIdx.x;
            bits[k] = found(t < to ? (int)t : to - 1);
        }
        if (threadIdx.x < 2) least[threadIdx.x] = to;
        __syncthreads();
#pragma unroll
        for (int k = PCRM_ITEMS - 1; k >= 0; k--) {
            const pcrm_int t = base + (pcrm_int)k * blockDim.x + threadIdx.x;
            if (t < to && bits[k] & 1) atomicMin(&least[0], (int)t);
            if (t < to && bits[k] & 2) atomicMin(&least[1], (int)t);
        }
        __syncthreads();
        if (result.first == to) result.first = least[0];
        if (result.second == to) result.second = least[1];
        __syncthreads();  // the next iteration overwrites least
    }
    return result;
}

__device__ long long id_at(pcrm_address ids, pcrm_int size, pcrm_int offset) {
    return size == 8 ? at<const long long>(ids)[offset] : at<const int>(ids)[offset];
}

// Each block processes one row at a time.
template <typename S, typename C>
__device__ void token(const pcrm_token_args &args) {
    const pcrm_common &a = args.common;
    const int width = (int)args.width;
    const C smoothing = (C)a.smoothing;
    double total = 0;
    for (pcrm_int row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const pcrm_int ids_w = row * args.chosen_ids_stride, ids_l = row * args.rejected_ids_stride;
        auto id_w = [&](int t) {
            return id_at(args.chosen_ids, args.chosen_ids_size, ids_w + t * args.chosen_ids_step);
        };
        auto id_l = [&](int t) {
            return id_at(args.rejected_ids, args.rejected_ids_size, ids_l + t * args.rejected_ids_step);
        };
        int start = first_of_two(0, width, [&](int t) { return id_w(t) != id_l(t) ? 3 : 0; }).first, end = width;
        if (start == width) {
            start = width - 1;
        } else {
            const two ends = first_of_two(start, width, [&](int t) {
                return (id_w(t) == args.pad ? 1 : 0) | (id_l(t) == args.pad ? 2 : 0);
            });
            end = ends.first > ends.second ? ends.first : ends.second;
        }
        const S *chosen = at<S>(a.chosen) + row * a.chosen_stride;
        const S *rejected = at<S>(a.rejected) + row * a.rejected_stride;
        C *by_chosen = a.grad_chosen ? at<C>(a.grad_chosen) + row * width : 0;
        C *by_rejected = a.grad_chosen ? at<C>(a.grad_rejected) + row * width : 0;
        const C delta = at<C>(a.delta)[row * a.delta_stride];
        const C scale = (C)(a.scale / (end - start));
        double sum = 0;
        for (pcrm_int base = 0; base < width; base += (pcrm_int)blockDim.x * PCRM_ITEMS) {
            C w[PCRM_ITEMS], l[PCRM_ITEMS];
#pragma unroll
            for (int k = 0; k < PCRM_ITEMS; k++) {
                const pcrm_int t = base + (pcrm_int)k * blockDim.x + threadIdx.x;
                if (t < start || t >= end) continue;
                w[k] = pcrm_load(chosen[t * args.chosen_step]);
                l[k] = pcrm_load(rejected[t * args.rejected_step]);
            }
#pragma unroll
            for (int k = 0; k < PCRM_ITEMS; k++) {
                const pcrm_int t = base + (pcrm_int)k * blockDim.x + threadIdx.x;
                if (t >= width) continue;
                pcrm_scored<C> r = {0, 0, 0};
                if (t >= start && t < end) r = pcrm_reward_loss(w[k], l[k], delta, smoothing, (C)0);
                sum += r.loss;
                if (by_chosen) {
                    by_chosen[t] = r.by_chosen * scale;
                    by_rejected[t] = r.by_rejected * scale;
                }
            }
        }
        const double loss = block_sum(sum) / (end - start);
        total += loss;
        if (!a.sum && threadIdx.x == 0) at<C>(a.loss)[row] = (C)loss;
    }
    finish<C>(a, total);
}

template <typename S, typename C>
__device__ void sum(const pcrm_sum_args &args) {
    double x = 0;
    for (pcrm_int i = threadIdx.x; i < args.count; i += blockDim.x) x += at<double>(args.partials)[i];
    x = block_sum(x);
    if (threadIdx.x == 0) *at<C>(args.loss) = (C)(x * args.scale);
}

template <typename S, typename C>
__device__ void scale(const pcrm_scale_args &args) {
    const pcrm_int step = (pcrm_int)gridDim.x * blockDim.x;
    // chosen may be grad_chosen, and rejected grad_rejected: each element is read before it is written.
    for (pcrm_int i = (pcrm_int)blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += step) {
        const pcrm_int row = args.incoming_stride == 0 ? 0 : i / args.width;
        const C factor = at<C>(args.incoming)[row * args.incoming_stride];
        pcrm_store(at<S>(args.chosen) + i, at<C>(args.grad_chosen)[i] * factor);
        pcrm_store(at<S>(args.rejected) + i, at<C>(args.grad_rejected)[i] * factor);
    }
}

}  // namespace

#define PCRM_KERNEL(form, type, storage, compute)                                                                \
    extern "C" __global__ void __launch_bounds__(PCRM_THREADS) pcrm_##form##_##type(pcrm_##form##_args args) { \
        form<storage, compute>(args);                                                                          \
    }
PCRM_KERNELS(PCRM_KERNEL)
