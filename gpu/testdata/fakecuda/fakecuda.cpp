// A libcuda.so.1 for machines without one. It provides the functions that ../../driver.c looks
// up. Device memory is host memory, and a launch runs the code of kernels.cu itself: the
// threads of a block are fibers that run in turn from one barrier to the next.
//
//     c++ -shared -fPIC -o libcuda.so.1 fakecuda.cpp
//
// Environment variables:
//
//     FAKECUDA_LOG         a file that receives one line per call
//     FAKECUDA_FAIL        NAME:CODE, a function that fails with that code
//     FAKECUDA_WRONG       KERNEL:RESULT, a kernel whose loss, grad_chosen or grad_rejected is 1%
//                          too large
//     FAKECUDA_VERSION     the CUDA version (default: 12010)
//     FAKECUDA_DEVICES     the number of devices (default: 2)
//     FAKECUDA_CAPABILITY  their compute capability (default: 90)
//
// Build it without _FORTIFY_SOURCE, whose longjmp treats a jump to another stack as an attack.
// Defining FAKECUDA_NO_LAUNCH leaves out cuLaunchKernel, as in a very old library.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

namespace {

struct index3 {
    unsigned x, y, z;
};
index3 threadIdx, blockIdx, blockDim, gridDim;

// A thread of a block: its own stack, and the place where it stopped. Blocks reuse the threads, and
// jumps avoid the system calls of swapcontext.
struct fiber {
    jmp_buf at;
    bool started, done;
};
constexpr unsigned most_threads = 1024;
fiber fibers[most_threads];
jmp_buf scheduler;
double exchanged[most_threads];

void barrier() {
    const unsigned self = threadIdx.x;
    if (_setjmp(fibers[self].at) == 0) _longjmp(scheduler, 1);
    threadIdx.x = self;
}

#define __device__ inline
#define __global__
#define __shared__ static
#define __launch_bounds__(threads)
#define __syncthreads barrier

double __shfl_xor_sync(unsigned, double x, int mask) {
    exchanged[threadIdx.x] = x;
    barrier();
    const double other = exchanged[threadIdx.x ^ mask];
    barrier();
    return other;
}

void atomicMin(int *at, int x) {
    if (x < *at) *at = x;
}

}  // namespace

#include "../../kernels.cu"

namespace {

void (*kernel_now)(void *args);
void *args_now;

void fiber_main() {
    for (;;) {
        kernel_now(args_now);
        fibers[threadIdx.x].done = true;
        barrier();
    }
}

void start(fiber &f) {
    constexpr size_t size = 64 << 10;
    ucontext_t context, unused;
    getcontext(&context);
    context.uc_stack.ss_sp = malloc(size);
    context.uc_stack.ss_size = size;
    makecontext(&context, fiber_main, 0);
    f.started = true;
    swapcontext(&unused, &context);
}

void run_block(unsigned threads) {
    for (unsigned i = 0; i < threads; i++) fibers[i].done = false;
    // volatile, because they are used across jumps.
    for (volatile unsigned turn = 0, left = threads; left > 0; turn = turn + 1) {
        for (volatile unsigned i = 0; i < threads; i = i + 1) {
            // Reverse the order every other time, so that races show.
            threadIdx.x = turn % 2 ? threads - 1 - i : i;
            fiber *volatile now = &fibers[threadIdx.x];
            if (_setjmp(scheduler) == 0) {
                if (now->started) _longjmp(now->at, 1);
                start(*now);
            }
            left = left - now->done;
        }
        if (left != 0 && left != threads) {
            fprintf(stderr, "fakecuda: only some threads of a block came to a barrier\n");
            abort();
        }
    }
}

struct kernel {
    const char *name;
    void (*run)(void *args);
};
#define ENTRY(form, type, storage, compute) \
    {"pcrm_" #form "_" #type, [](void *args) { pcrm_##form##_##type(*(pcrm_##form##_args *)args); }},
kernel kernels[] = {PCRM_KERNELS(ENTRY)};

struct code_text {
    int code;
    const char *name, *text;
};
const code_text codes[] = {
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
};

int setting(const char *name, int fallback) {
    const char *value = getenv(name);
    return value ? atoi(value) : fallback;
}

// A call: its line in the log, and the code with which it must fail.
template <typename... T>
int called(const char *name, const char *format, T... values) {
    if (const char *path = getenv("FAKECUDA_LOG")) {
        FILE *log = fopen(path, "a");
        fprintf(log, "%s", name);
        fprintf(log, format, values...);
        fprintf(log, "\n");
        fclose(log);
    }
    const char *fail = getenv("FAKECUDA_FAIL");
    const size_t length = strlen(name);
    return fail && strncmp(fail, name, length) == 0 && fail[length] == ':' ? atoi(fail + length + 1) : 0;
}

template <typename T>
void enlarge(pcrm_address results, long long count) {
    for (long long i = 0; i < count; i++) ((T *)results)[i] *= 1.01;
}

// Corrupt a result of a kernel if FAKECUDA_WRONG selects it. The arguments of all kernels except scale
// and sum begin with the common ones.
void spoil(const char *name, const void *args) {
    const char *wrong = getenv("FAKECUDA_WRONG");
    const size_t length = strlen(name);
    if (wrong == nullptr || strncmp(wrong, name, length) != 0 || wrong[length] != ':') return;
    const pcrm_common &common = *(const pcrm_common *)args;
    const char *result = wrong + length + 1;
    long long count = common.rows;
    pcrm_address address = 0;
    if (strcmp(result, "loss") == 0) {
        address = common.loss;
        count = common.sum ? 1 : common.rows;
    } else if (strcmp(result, "grad_chosen") == 0) {
        address = common.grad_chosen;
    } else if (strcmp(result, "grad_rejected") == 0) {
        address = common.grad_rejected;
    }
    if (address == 0) return;
    if (strstr(name, "float64"))
        enlarge<double>(address, count);
    else
        enlarge<float>(address, count);
}

thread_local std::vector<void *> contexts;
std::mutex device;
char context_of[8];  // the addresses of its elements serve as primary contexts
const char *image;

}  // namespace

extern "C" {

int cuGetErrorName(int code, const char **name) {
    for (const code_text &c : codes)
        if (c.code == code) return *name = c.name, 0;
    return 1;
}

int cuGetErrorString(int code, const char **text) {
    for (const code_text &c : codes)
        if (c.code == code) return *text = c.text, 0;
    return 1;
}

int cuDriverGetVersion(int *version) {
    *version = setting("FAKECUDA_VERSION", 12010);
    return called("cuDriverGetVersion", "");
}

int cuInit(unsigned flags) { return called("cuInit", " %u", flags); }

int cuDeviceGetCount(int *count) {
    *count = setting("FAKECUDA_DEVICES", 2);
    return called("cuDeviceGetCount", "");
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return called("cuDeviceGet", " %d", ordinal);
}

int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "Fake %d", device);
    return called("cuDeviceGetName", " %d", device);
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const int capability = setting("FAKECUDA_CAPABILITY", 90);
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return called("cuDeviceGetAttribute", " %d %d", attribute, device);
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &context_of[device];
    return called("cuDevicePrimaryCtxRetain", " %d", device);
}

int cuCtxPushCurrent_v2(void *context) {
    const int code = called("cuCtxPushCurrent", " %d", (int)((char *)context - context_of));
    if (code == 0) contexts.push_back(context);
    return code;
}

int cuCtxPopCurrent_v2(void **context) {
    if (contexts.empty()) return 201;
    *context = contexts.back();
    contexts.pop_back();
    return called("cuCtxPopCurrent", " %d", (int)((char *)*context - context_of));
}

int cuModuleLoadDataEx(void **module, const void *data, unsigned count, int *options, void **values) {
    const int code = called("cuModuleLoadDataEx", "");
    if (code && count == 2 && options[0] == 5 && options[1] == 6)
        snprintf((char *)values[0], (size_t)values[1], "ptxas: line 1: too new");
    image = (const char *)data;
    *module = contexts.empty() ? nullptr : contexts.back();
    return contexts.empty() ? 201 : code;
}

int cuModuleGetFunction(void **function, void *, const char *name) {
    char entry[80];
    snprintf(entry, sizeof entry, ".visible .entry %s(", name);
    if (strstr(image, entry) == nullptr) return 500;
    for (kernel &k : kernels)
        if (strcmp(k.name, name) == 0) return *function = &k, called("cuModuleGetFunction", " %s", name);
    return 500;
}

#ifdef FAKECUDA_NO_LAUNCH
#define cuLaunchKernel another_name
#endif

int cuLaunchKernel(void *function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned,
                   void *stream, void **parameters, void **) {
    const std::lock_guard<std::mutex> lock(device);
    const kernel *k = (kernel *)function;
    if (contexts.empty()) return 201;
    const int code = called("cuLaunchKernel", " %s blocks=%u threads=%u stream=%p context=%d", k->name, blocks, threads,
                            stream, (int)((char *)contexts.back() - context_of));
    if (code) return code;
    kernel_now = k->run;
    args_now = parameters[0];
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    for (unsigned block = 0; block < blocks; block++) {
        blockIdx = {block, 0, 0};
        run_block(threads);
    }
    spoil(k->name, args_now);
    return 0;
}
}
