/* The mathematics of one element, for the device and, in the tests, for the host. This is the C++
 * version of the functions that package pcrm documents (PairLoss, RewardLoss, DPOLoss).
 *
 * All functions are templates over the computing type T, float or double.
 */
#ifndef PCRM_MATH_H
#define PCRM_MATH_H

#include "kernels.h"

#ifdef __CUDACC_RTC__
#define PCRM_HD __host__ __device__ inline
#define PCRM_CALL __noinline__ /* the float64 versions are long, so they are not inlined */
#else
#include <math.h>
#include <string.h>
#define PCRM_HD inline
#define PCRM_CALL
#endif

PCRM_HD float pcrm_exp(float x) { return expf(x); }
PCRM_HD PCRM_CALL double pcrm_exp(double x) { return exp(x); }
PCRM_HD float pcrm_log1p(float x) { return log1pf(x); }
PCRM_HD PCRM_CALL double pcrm_log1p(double x) { return log1p(x); }
PCRM_HD float pcrm_abs(float x) { return fabsf(x); }
PCRM_HD double pcrm_abs(double x) { return fabs(x); }

PCRM_HD unsigned pcrm_bits(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

PCRM_HD float pcrm_of_bits(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

template <typename T>
struct pcrm_pair {
    T loss, grad;
};

/* The loss of one pair and its derivative with respect to the margin:
 *
 *   finite delta:  L = softplus(-m) + softplus(m-delta) + e*delta
 *                  g = sigmoid(m-delta) - sigmoid(-m)
 *   delta = +inf:  L = (1-e) softplus(-m) + e softplus(m)
 *                  g = e - sigmoid(-m)
 *
 * The special cases are those of pcrm.PairLoss. */
template <typename T>
PCRM_HD pcrm_pair<T> pcrm_pair_loss(T margin, T delta, T smoothing) {
    const T one = 1;
    const bool constrained = !(delta > 0 && delta - delta != 0); /* inf - inf is NaN, which differs from 0 */
    const T over = margin - delta;                               /* how far the margin exceeds its ceiling */
    /* With u = exp(-|x|), softplus(x) = max(x, 0) + log1p(u) and sigmoid(-|x|) = u/(1+u):
     * nothing overflows, and both tails keep their relative precision. If delta is infinite,
     * the second term has v = 0, and its other parts are omitted. */
    const T u = pcrm_exp(-pcrm_abs(margin)), v = constrained ? pcrm_exp(-pcrm_abs(over)) : 0;
    pcrm_pair<T> r = {pcrm_log1p(u) + pcrm_log1p(v), -(margin > 0 ? u : one) / (one + u)};
    if (constrained) {
        r.loss += smoothing * delta;
        r.grad += (over > 0 ? one : v) / (one + v);
        if (over > 0) r.loss += over;
        if (!(margin > 0)) r.loss -= margin;
    } else {
        r.grad += smoothing;
        /* Separate branches for the two linear parts: inf - inf would be NaN. */
        if (!(margin > 0)) {
            r.loss -= (one - smoothing) * margin;
        } else if (smoothing != 0) {
            r.loss += smoothing * margin;
        }
    }
    return r;
}

/* The pair loss of two scores with c (w + l)^2 for centering, and its gradient with respect to both. */
template <typename T>
struct pcrm_scored {
    T loss, by_chosen, by_rejected;
};

template <typename T>
PCRM_HD pcrm_scored<T> pcrm_reward_loss(T chosen, T rejected, T delta, T smoothing, T center) {
    const pcrm_pair<T> p = pcrm_pair_loss(chosen - rejected, delta, smoothing);
    pcrm_scored<T> r = {p.loss, p.grad, -p.grad};
    if (center != 0) { /* 0*inf would be NaN */
        const T sum = chosen + rejected, pull = 2 * center * sum;
        r.loss += center * sum * sum;
        r.by_chosen += pull;
        r.by_rejected += pull;
    }
    return r;
}

/* The pair loss of the implicit rewards, with its gradient and the rewards. */
template <typename T>
struct pcrm_implicit {
    T loss, by_chosen, by_rejected, chosen_reward, rejected_reward;
};

template <typename T>
PCRM_HD pcrm_implicit<T> pcrm_dpo_loss(T chosen, T rejected, T reference_chosen, T reference_rejected, T delta, T beta,
                                       T smoothing) {
    const T w = chosen - reference_chosen, l = rejected - reference_rejected;
    const pcrm_pair<T> p = pcrm_pair_loss(beta * (w - l), delta, smoothing);
    const pcrm_implicit<T> r = {p.loss, beta * p.grad, -(beta * p.grad), beta * w, beta * l};
    return r;
}

/* The types of scores in memory. The two 16-bit types are converted with integer operations. This
 * needs no CUDA header, and the host computes the same as the device. */
struct pcrm_bfloat16 {
    unsigned short bits;
};
struct pcrm_float16 {
    unsigned short bits;
};

PCRM_HD float pcrm_load(float x) { return x; }
PCRM_HD double pcrm_load(double x) { return x; }
PCRM_HD float pcrm_load(pcrm_bfloat16 x) { return pcrm_of_bits((unsigned)x.bits << 16); }

PCRM_HD float pcrm_load(pcrm_float16 x) {
    /* Moved to their places in a float32, the exponent and the 10 bits of the fraction give the
     * number times 2^(15-127). Infinity and NaN have all exponent bits set in both formats. */
    const unsigned sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
    const float scaled = pcrm_of_bits(rest) * 0x1p112f;
    return pcrm_of_bits(sign | (rest >= 0x0f800000u ? rest | 0x7f800000u : pcrm_bits(scaled)));
}

PCRM_HD void pcrm_store(float *to, float x) { *to = x; }
PCRM_HD void pcrm_store(double *to, double x) { *to = x; }

PCRM_HD void pcrm_store(pcrm_bfloat16 *to, float x) {
    const unsigned bits = pcrm_bits(x);
    /* Round to nearest, ties to even: 0x7fff is one less than half a unit, and an odd unit adds 1. */
    to->bits = x != x ? (unsigned short)(bits >> 16 | 0x40) : (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

PCRM_HD void pcrm_store(pcrm_float16 *to, float x) {
    const unsigned bits = pcrm_bits(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    unsigned short rest;
    if (size > 0x7f800000u) {
        rest = 0x7e00; /* NaN */
    } else if (size >= 0x477ff000u) {
        rest = 0x7c00; /* 65520, halfway to 65536, and everything above round to infinity */
    } else if (size < 0x38800000u) {
        /* Below 2^-14 the unit of float16 is 2^-24, as for a float32 in [0.5, 1), so the
         * addition rounds correctly. */
        rest = (unsigned short)(pcrm_bits(pcrm_of_bits(size) + 0.5f) - 0x3f000000u);
    } else {
        rest = (unsigned short)((size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13);
    }
    to->bits = (unsigned short)(sign | rest);
}

#endif
