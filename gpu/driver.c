//go:build linux

#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* The ABI of libcuda.so.1, declared here so that the build needs no CUDA header. Each entry is
 * the name of a function in the library with its parameters. */
#define FUNCTIONS(X)                                                                                             \
    X(cuInit, (unsigned flags))                                                                                  \
    X(cuDriverGetVersion, (int *version))                                                                        \
    X(cuGetErrorName, (int code, const char **name))                                                             \
    X(cuGetErrorString, (int code, const char **text))                                                           \
    X(cuDeviceGetCount, (int *count))                                                                            \
    X(cuDeviceGet, (CUdevice *device, int ordinal))                                                              \
    X(cuDeviceGetName, (char *name, int size, CUdevice device))                                                  \
    X(cuDeviceGetAttribute, (int *value, int attribute, CUdevice device))                                        \
    X(cuDevicePrimaryCtxRetain, (CUcontext *context, CUdevice device))                                           \
    X(cuCtxPushCurrent_v2, (CUcontext context))                                                                  \
    X(cuCtxPopCurrent_v2, (CUcontext *context))                                                                  \
    X(cuModuleLoadDataEx, (CUmodule *module, const void *image, unsigned count, int *options, void **values))    \
    X(cuModuleGetFunction, (CUfunction *function, CUmodule module, const char *name))                            \
    X(cuLaunchKernel, (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, \
                       unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters,  \
                       void **extra))

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };      /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_* */
enum { JIT_ERROR_LOG_BUFFER = 5, JIT_ERROR_LOG_SIZE = 6 }; /* CU_JIT_ERROR_LOG_BUFFER* */

static struct {
#define SLOT(name, parameters) int(*name) parameters;
    FUNCTIONS(SLOT)
} cuda;

#define KERNEL_NAME(form, type, storage, compute) "pcrm_" #form "_" #type,
static const char *const kernel_names[] = {PCRM_KERNELS(KERNEL_NAME)};

/* If a call fails, return its code and set *call to its name. */
#define TRY(function, ...)                       \
    do {                                         \
        *call = #function;                       \
        const int code = cuda.function(__VA_ARGS__); \
        if (code != 0) return code;              \
    } while (0)

int pcrm_driver_open(int least_version, int *version, int *devices, char *reason, int size, const char **call) {
    *call = "dlopen";
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        snprintf(reason, size, "%s", dlerror());
        return PCRM_NO_LIBRARY;
    }
    void *symbol;
#define FIND(name, parameters)                                      \
    if ((symbol = dlsym(library, #name)) == NULL) {                 \
        snprintf(reason, size, "libcuda.so.1 has no %s", #name);    \
        return PCRM_NO_LIBRARY;                                     \
    }                                                               \
    memcpy(&cuda.name, &symbol, sizeof symbol);
    FUNCTIONS(FIND)
    TRY(cuDriverGetVersion, version);
    if (*version < least_version) return PCRM_OLD_DRIVER;
    TRY(cuInit, 0);
    TRY(cuDeviceGetCount, devices);
    return 0;
}

void pcrm_driver_explain(int code, const char **name, const char **text) {
    if (cuda.cuGetErrorName(code, name) != 0) *name = "an unknown error";
    if (cuda.cuGetErrorString(code, text) != 0) *text = "CUDA has no text for it";
}

int pcrm_driver_describe(int device, char *name, int size, int *capability, const char **call) {
    CUdevice handle;
    int major, minor;
    TRY(cuDeviceGet, &handle, device);
    TRY(cuDeviceGetName, name, size, handle);
    TRY(cuDeviceGetAttribute, &major, CAPABILITY_MAJOR, handle);
    TRY(cuDeviceGetAttribute, &minor, CAPABILITY_MINOR, handle);
    *capability = 10 * major + minor;
    return 0;
}

static int load_module(const char *ptx, CUfunction *kernels, char *log, int size, const char **call) {
    CUmodule module;
    int options[] = {JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_SIZE};
    void *values[] = {log, (void *)(size_t)size};
    TRY(cuModuleLoadDataEx, &module, ptx, 2, options, values);
    /* Get all functions now. With lazy loading, a function is loaded when it is first requested,
     * and this must not happen while a graph is captured. */
    for (int i = 0; i < PCRM_KERNEL_COUNT; i++) TRY(cuModuleGetFunction, &kernels[i], module, kernel_names[i]);
    return 0;
}

int pcrm_driver_load(int device, const char *ptx, CUcontext *context, CUfunction *kernels, char *log, int size,
                     const char **call) {
    CUdevice handle;
    CUcontext ignored;
    TRY(cuDeviceGet, &handle, device);
    TRY(cuDevicePrimaryCtxRetain, context, handle);
    TRY(cuCtxPushCurrent_v2, *context);
    const int failed = load_module(ptx, kernels, log, size, call);
    if (failed) {
        cuda.cuCtxPopCurrent_v2(&ignored); /* *call keeps the name of the first failure */
        return failed;
    }
    TRY(cuCtxPopCurrent_v2, &ignored);
    return 0;
}

int pcrm_driver_launch(CUcontext context, CUfunction kernel, unsigned blocks, unsigned threads, CUstream stream,
                       void *args, const char **call) {
    void *parameters[] = {args};
    CUcontext ignored;
    TRY(cuCtxPushCurrent_v2, context);
    *call = "cuLaunchKernel";
    const int failed = cuda.cuLaunchKernel(kernel, blocks, 1, 1, threads, 1, 1, 0, stream, parameters, NULL);
    if (failed) {
        cuda.cuCtxPopCurrent_v2(&ignored);
        return failed;
    }
    TRY(cuCtxPopCurrent_v2, &ignored);
    return 0;
}
