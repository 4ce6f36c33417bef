/* A management library with two GPUs.  Each macro overrides one answer; OMIT_x leaves a call out. */
#include <string.h>

#ifndef INIT
#define INIT 0
#endif
#ifndef DRIVER
#define DRIVER 0
#endif
#ifndef CUDA
#define CUDA 0
#endif
#ifndef COUNT_CODE
#define COUNT_CODE 0
#endif
#ifndef COUNT
#define COUNT 2
#endif
#ifndef HANDLE
#define HANDLE 0
#endif
#ifndef NAME
#define NAME 0
#endif
#ifndef NAME_TEXT
#define NAME_TEXT "NVIDIA H200"
#endif
#ifndef CAPABILITY
#define CAPABILITY 0
#endif
#ifndef MAJOR
#define MAJOR 9
#endif
#ifndef MINOR
#define MINOR 0
#endif
#ifndef MEMORY
#define MEMORY 0
#endif
#ifndef SHUTDOWN
#define SHUTDOWN 0
#endif

typedef struct { unsigned long long total, free, used; } Memory;
static int running;
static char devices[2];

/* Every call but init fails with "uninitialized" before init and after shutdown. */
#define NEED if (!running) return 1

int nvmlInit_v2(void) { if (!INIT) running = 1; return INIT; }
int nvmlShutdown(void) { NEED; running = 0; return SHUTDOWN; }
int fake_running(void) { return running; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    NEED;
    if (length < 80) return 7;
    strcpy(text, "580.159.03");
    return DRIVER;
}
#ifndef OMIT_CUDA
int nvmlSystemGetCudaDriverVersion_v2(int *version) { NEED; *version = 13020; return CUDA; }
#endif
int nvmlDeviceGetCount_v2(unsigned *count) { NEED; *count = COUNT; return COUNT_CODE; }
/* From here on only the second GPU fails. */
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    NEED;
    if (index >= COUNT) return 2;
    *device = &devices[index];
    return index ? HANDLE : 0;
}
static int second(void *device) { return device == &devices[1]; }
static int known(void *device) { return device == &devices[0] || second(device); }
int nvmlDeviceGetName(void *device, char *text, unsigned length) {
    NEED;
    if (!known(device)) return 2;
    if (length < 96) return 7;
    strcpy(text, second(device) ? NAME_TEXT : "NVIDIA H200");
    return second(device) ? NAME : 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    NEED;
    if (!known(device)) return 2;
    *major = second(device) ? MAJOR : 9;
    *minor = second(device) ? MINOR : 0;
    return second(device) ? CAPABILITY : 0;
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    NEED;
    if (!known(device)) return 2;
    memory->total = 150754820096ULL;
    memory->free = 1000;
    memory->used = 2000;
    return second(device) ? MEMORY : 0;
}
#ifndef OMIT_TEXT
const char *nvmlErrorString(int code) {
#ifdef NO_TEXT
    return 0;
#endif
    return code == 3 ? "Not Supported" : code == 9 ? "Driver Not Loaded"
        : code == 15 ? "GPU is lost" : code == 18 ? "Driver/library version mismatch"
        : "Unknown Error";
}
#endif
