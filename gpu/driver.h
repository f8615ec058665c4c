/* The CUDA driver, loaded with dlopen. All functions return 0 on success. On failure they return
 * the code of the failed CUDA call and set *call to its name. */
#ifndef PCRM_DRIVER_H
#define PCRM_DRIVER_H

#include "kernels.h"

enum { PCRM_NO_LIBRARY = -1, PCRM_OLD_DRIVER = -2 }; /* our own codes */

#define PCRM_INDEX(form, type, storage, compute) PCRM_KERNEL_##form##_##type,
enum { PCRM_KERNELS(PCRM_INDEX) PCRM_KERNEL_COUNT };

/* Launches add the dtype to the index of a form's first kernel. */
#define PCRM_ASSERT_ORDER(form)                                                                  \
    _Static_assert(PCRM_KERNEL_##form##_float64 - PCRM_KERNEL_##form##_float32 == PCRM_FLOAT64 &&   \
                   PCRM_KERNEL_##form##_bfloat16 - PCRM_KERNEL_##form##_float32 == PCRM_BFLOAT16 && \
                   PCRM_KERNEL_##form##_float16 - PCRM_KERNEL_##form##_float32 == PCRM_FLOAT16,     \
                   "the kernels of the form " #form " are not in the order of the dtypes")
PCRM_ASSERT_ORDER(pair);
PCRM_ASSERT_ORDER(token);
PCRM_ASSERT_ORDER(dpo);
PCRM_ASSERT_ORDER(scale);

/* CUDA's handles, as its own header declares them. */
typedef int CUdevice;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;

/* Load the library and initialize the driver. version receives the driver's CUDA version, 12010
 * for 12.1. If it is less than least_version, the driver is not initialized. If there is no
 * library, reason receives the message of the dynamic linker. */
int pcrm_driver_open(int least_version, int *version, int *devices, char *reason, int size, const char **call);

/* Return CUDA's name and text for a code. */
void pcrm_driver_explain(int code, const char **name, const char **text);

/* Return the name and the compute capability of a device, 90 for 9.0. */
int pcrm_driver_describe(int device, char *name, int size, int *capability, const char **call);

/* Retain the device's primary context, compile the PTX in it and find the kernels. If the
 * compilation fails, log receives the compiler's message. */
int pcrm_driver_load(int device, const char *ptx, CUcontext *context, CUfunction *kernels, char *log, int size,
                     const char **call);

/* Launch a kernel in a context, and restore the previous context. */
int pcrm_driver_launch(CUcontext context, CUfunction kernel, unsigned blocks, unsigned threads, CUstream stream,
                       void *args, const char **call);

#endif
