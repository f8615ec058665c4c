/* CUDA's driver, found with dlopen. A call that fails returns CUDA's code and names itself in
 * *call; 0 is success. */
#ifndef PCRM_DRIVER_H
#define PCRM_DRIVER_H

#include "kernels.h"

enum { PCRM_NO_LIBRARY = -1, PCRM_OLD_DRIVER = -2 }; /* codes of ours */

#define PCRM_INDEX(form, type, storage, compute) PCRM_KERNEL_##form##_##type,
enum { PCRM_KERNELS(PCRM_INDEX) PCRM_KERNEL_COUNT };

/* Load the library and initialize it. version is CUDA's of the driver, 12010 for 12.1; where
 * it is less than least_version the driver is not initialized. reason gets what the dynamic
 * linker says where there is no library. */
int pcrm_driver_open(int least_version, int *version, int *devices, char *reason, int size, const char **call);

/* CUDA's own name and text of a code. */
void pcrm_driver_explain(int code, const char **name, const char **text);

/* A device's name and compute capability, 90 for 9.0. */
int pcrm_driver_describe(int device, char *name, int size, int *capability, const char **call);

/* Retain the device's primary context, compile the PTX in it and find the kernels. log gets
 * the compiler's words where it refuses. */
int pcrm_driver_load(int device, const char *ptx, void **context, void **kernels, char *log, int size, const char **call);

/* Launch with that context current, and restore the one that was. */
int pcrm_driver_launch(void *context, void *kernel, unsigned blocks, unsigned threads, void *stream, void *args,
                       const char **call);

#endif
