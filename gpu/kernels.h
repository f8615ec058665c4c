/* The arguments of the kernels, in C that the kernels, their launcher and the tests' driver share.
 *
 * Addresses refer to device memory; 0 means none. Strides count elements. Scores, log
 * probabilities and token ids may have any stride. Outputs are contiguous. */
#ifndef PCRM_KERNELS_H
#define PCRM_KERNELS_H

typedef unsigned long long pcrm_address;
typedef long long pcrm_int;

/* The types of scores in memory, in the order of gpu.Dtype, of CUDA_CODES in Python and of the
 * kernels of each form in PCRM_KERNELS. */
enum { PCRM_FLOAT32, PCRM_FLOAT64, PCRM_BFLOAT16, PCRM_FLOAT16 };

/* The maximum number of threads per block. Each thread processes PCRM_ITEMS elements at a time,
 * whose loads overlap. */
#define PCRM_THREADS 1024
#define PCRM_ITEMS 4

/* The arguments of all forms. `scale` multiplies the gradients and the total. If `sum` is 0, loss
 * has one element per row. Otherwise it is a single element. A launch of one block writes it
 * directly; the blocks of a larger launch leave their sums in `partials` for pcrm_sum. */
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

/* gradient * incoming, for both gradients. Each incoming element applies to `width` elements. */
typedef struct {
    pcrm_int count, width;
    pcrm_address chosen, rejected, grad_chosen, grad_rejected, incoming;
    pcrm_int incoming_stride;
} pcrm_scale_args;

/* Each kernel: its form, its dtype, the type of scores in memory, the computing type. */
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
