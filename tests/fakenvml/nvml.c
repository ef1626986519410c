/* A fake libnvidia-ml.so.1: NVML's answers, read from the file that LLAMAFLEET_FAKE_NVML names.
 *
 * One answer a line, five fields between tabs: DEVICE KEY FROM CODE VALUE.
 *   DEVICE  "-" (the system), an index ("0"), or a MIG device of one ("0.1").
 *   KEY     the function's name as pynvml has it, then "/ARGUMENT" for each argument.
 *   FROM    the answer counts from this call of that function on this device (the first is 0).
 *   CODE    nvmlReturn_t, or "hang": the call never returns.
 *   VALUE   numbers between blanks, or text; of process lists "PID MEMORY" for each, where the PID
 *           "child" is the newest child of this process, left out where there is none.
 * The key "*" stands for every function of a device, and counts all its calls; it goes before the
 * others. What no line answers is NVML_ERROR_NOT_SUPPORTED. The file is read again when it changes; how
 * often a function was called is remembered.
 */
#include <dirent.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OK 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define HANG (-1)
#define MOST 4096
#define LONG 512

typedef struct { char label[16]; } *Device;
typedef struct { char device[16], key[80]; int from, code; char value[LONG]; } Line;
typedef struct { char device[16], key[80]; int calls; } Count;

static Line lines[MOST];
static Count counts[MOST];
static int n_lines, n_counts, initialised;
static struct timespec read_at;
static char labels[64][16];
static int n_labels;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void load(void) {
  const char *path = getenv("LLAMAFLEET_FAKE_NVML");
  struct stat now;
  if (!path || stat(path, &now)) { n_lines = 0; return; }
  if (now.st_mtim.tv_sec == read_at.tv_sec && now.st_mtim.tv_nsec == read_at.tv_nsec) return;
  FILE *file = fopen(path, "r");
  if (!file) { n_lines = 0; return; }
  read_at = now.st_mtim;
  char text[LONG + 256];
  for (n_lines = 0; n_lines < MOST && fgets(text, sizeof text, file);) {
    char *rest = text, *field[5] = {0};
    text[strcspn(text, "\n")] = 0;
    for (int i = 0; i < 5; i++) field[i] = i < 4 ? strsep(&rest, "\t") : rest;
    if (!field[3]) continue;
    Line *line = &lines[n_lines++];
    snprintf(line->device, sizeof line->device, "%s", field[0]);
    snprintf(line->key, sizeof line->key, "%s", field[1]);
    line->from = atoi(field[2]);
    line->code = strcmp(field[3], "hang") ? atoi(field[3]) : HANG;
    snprintf(line->value, sizeof line->value, "%s", field[4] ? field[4] : "");
  }
  fclose(file);
}

static int called(const char *device, const char *key) {
  for (int i = 0; i < n_counts; i++)
    if (!strcmp(counts[i].device, device) && !strcmp(counts[i].key, key)) return counts[i].calls++;
  if (n_counts == MOST) return 0;
  Count *count = &counts[n_counts++];
  snprintf(count->device, sizeof count->device, "%s", device);
  snprintf(count->key, sizeof count->key, "%s", key);
  count->calls = 1;
  return 0;
}

/* The line that answers call `number`; NULL: none does. */
static Line *answer(const char *device, const char *key, int number) {
  Line *found = NULL;
  for (Line *line = lines; line < lines + n_lines; line++)
    if (!strcmp(line->device, device) && !strcmp(line->key, key) && line->from <= number &&
        (!found || line->from >= found->from))
      found = line;
  return found;
}

/* The answer to one call: its code, and its text in `value`. */
static int ask(const char *device, const char *key, char *value) {
  pthread_mutex_lock(&lock);
  load();
  int number = called(device, key), of_all = called(device, "*"), code = NOT_SUPPORTED;
  Line *found = answer(device, "*", of_all);
  if (!found) found = answer(device, key, number);
  value[0] = 0;
  if (found) {
    code = found->code;
    strcpy(value, found->value);
  }
  if (!initialised && strcmp(key, "nvmlInit")) code = UNINITIALIZED;
  pthread_mutex_unlock(&lock);
  while (code == HANG) sleep(1000);
  return code;
}

static int numbers(const char *device, const char *key, int n, uint64_t *into) {
  char value[LONG], *at = value;
  int code = ask(device, key, value);
  for (int i = 0; i < n && code == OK; i++) into[i] = strtoull(at, &at, 10);
  return code;
}

static int text(const char *device, const char *key, char *into, unsigned size) {
  char value[LONG];
  int code = ask(device, key, value);
  if (code == OK) snprintf(into, size, "%s", value);
  return code;
}

static Device handle(const char *label) {
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < n_labels && strcmp(labels[i], label)) i++;
  if (i == n_labels && n_labels < 64) snprintf(labels[n_labels++], sizeof labels[0], "%s", label);
  pthread_mutex_unlock(&lock);
  return (Device)labels[i];
}

/* -- the system ------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
  char value[LONG];
  (void)flags;
  int code = ask("-", "nvmlInit", value);
  if (code == NOT_SUPPORTED) code = OK; /* nothing was said of it */
  initialised = code == OK;
  return code;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { initialised = 0; return OK; }
const char *nvmlErrorString(int code) {
  static char said[40];
  snprintf(said, sizeof said, "NVML error %d", code);
  return said;
}
int nvmlSystemGetDriverVersion(char *into, unsigned size) {
  return text("-", "nvmlSystemGetDriverVersion", into, size);
}
int nvmlSystemGetNVMLVersion(char *into, unsigned size) {
  return text("-", "nvmlSystemGetNVMLVersion", into, size);
}
int nvmlSystemGetCudaDriverVersion_v2(int *into) {
  uint64_t n[1] = {0};
  int code = numbers("-", "nvmlSystemGetCudaDriverVersion_v2", 1, n);
  *into = (int)n[0];
  return code;
}
int nvmlDeviceGetCount_v2(unsigned *into) {
  uint64_t n[1] = {0};
  int code = numbers("-", "nvmlDeviceGetCount", 1, n);
  *into = (unsigned)n[0];
  return code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *into) {
  char key[80], value[LONG], label[16];
  snprintf(key, sizeof key, "nvmlDeviceGetHandleByIndex/%u", index);
  int code = ask("-", key, value);
  snprintf(label, sizeof label, "%u", index);
  *into = handle(label);
  return code == NOT_SUPPORTED ? OK : code;
}

/* -- one number, two, or text ------------------------------------------------------------------ */

#define U32(name)                                                  \
  int name(Device device, unsigned *into) {                        \
    uint64_t n[1] = {0};                                           \
    int code = numbers(device->label, #name, 1, n);                \
    if (code == OK) *into = (unsigned)n[0];                        \
    return code;                                                   \
  }
#define U64(name)                                                  \
  int name(Device device, uint64_t *into) {                        \
    return numbers(device->label, #name, 1, into);                 \
  }
#define TWO(name)                                                  \
  int name(Device device, unsigned *one, unsigned *two) {          \
    uint64_t n[2] = {0};                                           \
    int code = numbers(device->label, #name, 2, n);                \
    if (code == OK) { *one = (unsigned)n[0]; *two = (unsigned)n[1]; } \
    return code;                                                   \
  }
#define OF(name)                                                   \
  int name(Device device, unsigned argument, unsigned *into) {     \
    char key[80];                                                  \
    uint64_t n[1] = {0};                                           \
    snprintf(key, sizeof key, #name "/%u", argument);              \
    int code = numbers(device->label, key, 1, n);                  \
    if (code == OK) *into = (unsigned)n[0];                        \
    return code;                                                   \
  }
#define TEXT(name)                                                 \
  int name(Device device, char *into, unsigned size) {             \
    return text(device->label, #name, into, size);                 \
  }

TEXT(nvmlDeviceGetName)
TEXT(nvmlDeviceGetUUID)
U32(nvmlDeviceGetComputeMode)
U32(nvmlDeviceGetPersistenceMode)
U32(nvmlDeviceGetDisplayMode)
U32(nvmlDeviceGetDisplayActive)
U32(nvmlDeviceGetPowerUsage)
U32(nvmlDeviceGetPowerManagementLimit)
U32(nvmlDeviceGetPowerManagementDefaultLimit)
U32(nvmlDeviceGetEnforcedPowerLimit)
U32(nvmlDeviceGetCurrPcieLinkGeneration)
U32(nvmlDeviceGetCurrPcieLinkWidth)
U32(nvmlDeviceGetMaxPcieLinkGeneration)
U32(nvmlDeviceGetMaxPcieLinkWidth)
U32(nvmlDeviceGetGpuMaxPcieLinkGeneration)
U32(nvmlDeviceGetRetiredPagesPendingStatus)
U32(nvmlDeviceGetMaxMigDeviceCount)
U32(nvmlDeviceIsMigDeviceHandle)
U64(nvmlDeviceGetCurrentClocksThrottleReasons)
U64(nvmlDeviceGetCurrentClocksEventReasons)
TWO(nvmlDeviceGetPowerManagementLimitConstraints)
TWO(nvmlDeviceGetMigMode)
TWO(nvmlDeviceGetEccMode)
TWO(nvmlDeviceGetCudaComputeCapability)
OF(nvmlDeviceGetClockInfo)
OF(nvmlDeviceGetMaxClockInfo)
OF(nvmlDeviceGetApplicationsClock)
OF(nvmlDeviceGetDefaultApplicationsClock)
OF(nvmlDeviceGetTemperature)

/* -- structures -------------------------------------------------------------------------------- */

typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(Device device, Utilization *into) {
  uint64_t n[2] = {0};
  int code = numbers(device->label, "nvmlDeviceGetUtilizationRates", 2, n);
  into->gpu = (unsigned)n[0];
  into->memory = (unsigned)n[1];
  return code;
}

typedef struct {
  char legacy[16];
  unsigned domain, bus, device, id, subsystem;
  char bus_id[32];
} PciInfo;
int nvmlDeviceGetPciInfo_v3(Device device, PciInfo *into) {
  memset(into, 0, sizeof *into);
  return text(device->label, "nvmlDeviceGetPciInfo", into->bus_id, sizeof into->bus_id);
}

typedef struct { uint64_t total, free, used; } Memory;
typedef struct { unsigned version; uint64_t total, reserved, free, used; } Memory2;
int nvmlDeviceGetMemoryInfo(Device device, Memory *into) {
  return numbers(device->label, "nvmlDeviceGetMemoryInfo", 3, (uint64_t *)into);
}
int nvmlDeviceGetMemoryInfo_v2(Device device, Memory2 *into) {
  uint64_t n[4] = {0};
  if (into->version != (sizeof *into | 2u << 24)) return 25; /* argument version mismatch */
  int code = numbers(device->label, "nvmlDeviceGetMemoryInfo_v2", 4, n);
  into->total = n[0], into->reserved = n[1], into->free = n[2], into->used = n[3];
  return code;
}

typedef struct { unsigned pid; uint64_t used; unsigned gpu_instance, compute_instance; } Process;

/* When a process began, in clock ticks since the boot: field 22 of its stat. */
static unsigned long long began(unsigned pid) {
  char path[40], line[LONG] = "";
  unsigned long long ticks = 0;
  snprintf(path, sizeof path, "/proc/%u/stat", pid);
  FILE *told = fopen(path, "r");
  if (told && fgets(line, sizeof line, told) && strrchr(line, ')'))
    sscanf(strrchr(line, ')'), ") %*c" /* 3 */ " %*d %*d %*d %*d %*d" /* 8 */
           " %*u %*u %*u %*u %*u %*u %*u" /* 15 */ " %*d %*d %*d %*d %*d %*d" /* 21 */ " %llu", &ticks);
  if (told) fclose(told);
  return ticks;
}

/* The newest child of this process by its start, for pids begin again; 0: there is none. */
static unsigned child(void) {
  unsigned newest = 0, one;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *task; tasks && (task = readdir(tasks));) {
    char path[320];
    snprintf(path, sizeof path, "/proc/self/task/%s/children", task->d_name);
    FILE *told = fopen(path, "r");
    /* The kernel lists a thread's children as they came: the last of one tick is the newest. */
    while (told && fscanf(told, "%u", &one) == 1)
      if (!newest || began(one) >= began(newest)) newest = one;
    if (told) fclose(told);
  }
  if (tasks) closedir(tasks);
  return newest;
}

static int processes(Device device, const char *key, unsigned *count, Process *into) {
  char value[LONG], *rest = value, *pid, *used;
  int code = ask(device->label, key, value), n = 0;
  Process found[32];
  while (code == OK && n < 32 && (pid = strsep(&rest, " ")) && *pid && (used = strsep(&rest, " "))) {
    unsigned number = strcmp(pid, "child") ? (unsigned)strtoul(pid, 0, 10) : child();
    if (number || *pid == '0')
      found[n++] = (Process){number, strtoull(used, 0, 10), 0xFFFFFFFFu, 0xFFFFFFFFu};
  }
  if (code != OK) return code;
  unsigned room = *count;
  *count = (unsigned)n;
  if (n && (!into || room < (unsigned)n)) return INSUFFICIENT_SIZE;
  if (into) memcpy(into, found, (size_t)n * sizeof *into);
  return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, Process *into) {
  return processes(device, "nvmlDeviceGetComputeRunningProcesses", count, into);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned *count, Process *into) {
  return processes(device, "nvmlDeviceGetGraphicsRunningProcesses", count, into);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Device device, unsigned *count, Process *into) {
  return processes(device, "nvmlDeviceGetMPSComputeRunningProcesses", count, into);
}

typedef struct { uint64_t reference, violation; } Violation;
int nvmlDeviceGetViolationStatus(Device device, unsigned policy, Violation *into) {
  char key[80];
  snprintf(key, sizeof key, "nvmlDeviceGetViolationStatus/%u", policy);
  return numbers(device->label, key, 2, (uint64_t *)into);
}
int nvmlDeviceGetTotalEccErrors(Device device, unsigned error, unsigned counter, uint64_t *into) {
  char key[80];
  snprintf(key, sizeof key, "nvmlDeviceGetTotalEccErrors/%u/%u", error, counter);
  return numbers(device->label, key, 1, into);
}
int nvmlDeviceGetRemappedRows(Device device, unsigned *correctable, unsigned *uncorrectable,
                              unsigned *pending, unsigned *failure) {
  uint64_t n[4] = {0};
  int code = numbers(device->label, "nvmlDeviceGetRemappedRows", 4, n);
  *correctable = (unsigned)n[0], *uncorrectable = (unsigned)n[1];
  *pending = (unsigned)n[2], *failure = (unsigned)n[3];
  return code;
}

typedef struct {
  uint32_t id, scope;
  int64_t at, latency;
  unsigned type;
  int code;
  uint64_t value;
} Field;
int nvmlDeviceGetFieldValues(Device device, int count, Field *into) {
  uint64_t n[1];
  char key[80], value[LONG];
  int code = ask(device->label, "nvmlDeviceGetFieldValues", value);
  if (code != OK && code != NOT_SUPPORTED) return code;
  for (int i = 0; i < count; i++) {
    n[0] = 0;
    snprintf(key, sizeof key, "field/%u", into[i].id);
    into[i].code = numbers(device->label, key, 1, n);
    into[i].type = 3; /* unsigned long long */
    into[i].value = n[0];
  }
  return OK;
}

/* -- MIG --------------------------------------------------------------------------------------- */

int nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *into) {
  char key[80], label[16], value[LONG];
  snprintf(key, sizeof key, "nvmlDeviceGetMigDeviceHandleByIndex/%u", index);
  int code = ask(device->label, key, value);
  if (code == NOT_SUPPORTED) return NOT_FOUND;
  snprintf(label, sizeof label, "%.10s.%u", device->label, index);
  *into = handle(label);
  return code;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device device, Device *into) {
  char label[16];
  snprintf(label, sizeof label, "%s", device->label);
  if (!strchr(label, '.')) return INVALID_ARGUMENT;
  *strchr(label, '.') = 0;
  *into = handle(label);
  return OK;
}
