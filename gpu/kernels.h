/* What the kernels take: C that the kernels, their launcher and the tests' driver share.
 *
 * Addresses are of the device's memory; 0 is none. Strides count elements. Scores, log
 * probabilities and token ids may lie with any stride; what is written is contiguous. */
#ifndef PCRM_KERNELS_H
#define PCRM_KERNELS_H

typedef unsigned long long pcrm_address;
typedef long long pcrm_int;

/* How scores lie in memory: in the order of gpu.Dtype, of CUDA_CODES in Python and of the
 * kernels of each form in PCRM_KERNELS. */
enum { PCRM_FLOAT32, PCRM_FLOAT64, PCRM_BFLOAT16, PCRM_FLOAT16 };

/* Threads of a block at most. Each does PCRM_ITEMS elements in turn, whose loads are under
 * way at once. */
#define PCRM_THREADS 1024
#define PCRM_ITEMS 4

/* What all forms have. In them `scale` multiplies the gradients and the total. Where
 * `sum` is 0, loss is an element a row; else it is one element, which a launch of one block
 * writes itself, while those of more leave their sums in `partials` for pcrm_sum. */
typedef struct {
    pcrm_int rows, sum;
    pcrm_address loss, grad_chosen, grad_rejected, partials;
    pcrm_address chosen, rejected, delta;
    pcrm_int chosen_stride, rejected_stride, delta_stride; /* from row to row */
    double scale, smoothing;
} pcrm_common;

typedef struct {
    pcrm_common common;
    double center;
} pcrm_pair_args;

typedef struct {
    pcrm_common common;
    pcrm_address reference_chosen, reference_rejected, chosen_rewards, rejected_rewards;
    pcrm_int reference_chosen_stride, reference_rejected_stride;
    double beta;
} pcrm_dpo_args;

typedef struct {
    pcrm_common common;
    pcrm_int width, chosen_step, rejected_step; /* steps go from position to position */
    pcrm_address chosen_ids, rejected_ids;
    pcrm_int chosen_ids_size, rejected_ids_size; /* bytes of an id: 4 or 8 */
    pcrm_int chosen_ids_stride, chosen_ids_step, rejected_ids_stride, rejected_ids_step;
    pcrm_int pad;
} pcrm_token_args;

typedef struct {
    pcrm_int count;
    pcrm_address loss, partials;
    double scale;
} pcrm_sum_args;

/* gradient * incoming, for both gradients. An incoming element serves `width` elements. */
typedef struct {
    pcrm_int count, width;
    pcrm_address chosen, rejected, grad_chosen, grad_rejected, incoming;
    pcrm_int incoming_stride;
} pcrm_scale_args;

/* Each kernel: its name, its arguments, how the scores lie in memory, what computes. */
#define PCRM_KERNELS(X)                                     \
    X(pair, float32, float, float)                          \
    X(pair, float64, double, double)                        \
    X(pair, bfloat16, pcrm_bfloat16, float)                 \
    X(pair, float16, pcrm_float16, float)                   \
    X(token, float32, float, float)                         \
    X(token, float64, double, double)                       \
    X(token, bfloat16, pcrm_bfloat16, float)                \
    X(token, float16, pcrm_float16, float)                  \
    X(dpo, float32, float, float)                           \
    X(dpo, float64, double, double)                         \
    X(dpo, bfloat16, pcrm_bfloat16, float)                  \
    X(dpo, float16, pcrm_float16, float)                    \
    X(scale, float32, float, float)                         \
    X(scale, float64, double, double)                       \
    X(scale, bfloat16, pcrm_bfloat16, float)                \
    X(scale, float16, pcrm_float16, float)                  \
    X(sum, float32, float, float)                           \
    X(sum, float64, double, double)

#endif
