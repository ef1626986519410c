// GPUs for llama.cpp that reserve and compute nothing: what it would put onto a CUDA device, it
// puts onto these and accounts for. Of llama.cpp of llama-cpp-python 0.3.36; what a CUDA device
// answers is repeated here, each piece with where it stands in ggml/src/ggml-cuda:
//   alignment 128 and padded rows of quantized tensors    ggml-cuda.cu:877, :903
//   flash attention's copies of a quantized cache in f16  fattn.cu:722, fattn-common.cuh:53
//   the batch from which a weight of the CPU is copied    ggml-cuda.cu:5651, 32
// Built against the tree's own headers: g++ -shared -fPIC -I ggml/include -I ggml/src device.cpp

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

const size_t MIB = 1 << 20;
const int64_t ROW_PADDING = 512;

struct Gpu {
    ggml_backend_device device;
    ggml_backend_buffer_type buft;
    std::string name;
    size_t memory;
    size_t used;
};

std::vector<Gpu *> gpus;
ggml_backend_reg registry;

Gpu * of(ggml_backend_dev_t dev) { return (Gpu *) dev->context; }

// -- memory ----------------------------------------------------------------------------------------

const char * buft_name(ggml_backend_buffer_type_t buft) { return ((Gpu *) buft->context)->name.c_str(); }

size_t alignment(ggml_backend_buffer_type_t) { return 128; }

size_t f16_of(const ggml_tensor * t) { return t->type == GGML_TYPE_F16 ? 0 : ggml_nelements(t)*2 + 128; }

size_t alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * t) {
    size_t size = ggml_nbytes(t);
    if (t->op == GGML_OP_FLASH_ATTN_EXT && t->src[0]->ne[1] > 2) {
        const ggml_tensor * k = t->src[1], * v = t->src[2];
        const bool shared = v->view_src && (v->view_src == k || (v->view_src == k->view_src && v->view_offs == k->view_offs));
        size += f16_of(k) + (shared ? 0 : f16_of(v));
    }
    if (ggml_is_quantized(t->type) && t->ne[0] % ROW_PADDING != 0) {
        size += ggml_row_size(t->type, ROW_PADDING - t->ne[0] % ROW_PADDING);
    }
    return size;
}

void buffer_free(ggml_backend_buffer_t buffer) {
    ((Gpu *) buffer->buft->context)->used -= buffer->size;
    free(buffer->context);
}
void * buffer_base(ggml_backend_buffer_t buffer) { return buffer->context; }
void buffer_memset(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {}
void buffer_set(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {}
void buffer_get(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t) {}
void buffer_clear(ggml_backend_buffer_t, uint8_t) {}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    Gpu * gpu = (Gpu *) buft->context;
    if (gpu->used + size > gpu->memory) {
        // In CUDA's words: ggml-cuda.cu:888.
        GGML_LOG_ERROR("%s: allocating %.2f MiB on device %d: cudaMalloc failed: %s\n",
            "ggml_backend_cuda_buffer_type_alloc_buffer", size / 1024.0 / 1024.0,
            atoi(gpu->name.c_str() + 4), "out of memory");
        return nullptr;
    }
    gpu->used += size;
    static ggml_backend_buffer_i i = {};
    i.free_buffer = buffer_free;
    i.get_base = buffer_base;
    i.memset_tensor = buffer_memset;
    i.set_tensor = buffer_set;
    i.get_tensor = buffer_get;
    i.clear = buffer_clear;
    // Never touched, and so never there: only addresses are taken.
    return ggml_backend_buffer_init(buft, i, aligned_alloc(128, (size + 128) & ~size_t(127)), size);
}

// Memory of the host, pinned: what stays on the CPU is put there.
const char * host_name(ggml_backend_buffer_type_t) { return "CUDA_Host"; }
ggml_backend_buffer_t host_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    buffer->buft = buft;
    return buffer;
}
ggml_backend_buffer_type host_buft;
ggml_backend_buffer_type_t host_buffer_type(ggml_backend_dev_t) { return &host_buft; }

// -- the stream ------------------------------------------------------------------------------------

ggml_guid guid = {0x66, 0x61, 0x6b, 0x65, 0x63, 0x75, 0x64, 0x61, 1, 2, 3, 4, 5, 6, 7, 8};

const char * stream_name(ggml_backend_t backend) { return of(backend->device)->name.c_str(); }
void stream_free(ggml_backend_t backend) { delete backend; }
ggml_status stream_compute(ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_SUCCESS; }
void stream_synchronize(ggml_backend_t) {}
void stream_event(ggml_backend_t, ggml_backend_event_t) {}

ggml_backend_t init_backend(ggml_backend_dev_t dev, const char *) {
    ggml_backend_i i = {};
    i.get_name = stream_name;
    i.free = stream_free;
    i.synchronize = stream_synchronize;
    i.graph_compute = stream_compute;
    i.event_record = stream_event;
    i.event_wait = stream_event;
    return new ggml_backend{&guid, i, dev, nullptr};
}

// -- the device ------------------------------------------------------------------------------------

const char * name(ggml_backend_dev_t dev) { return of(dev)->name.c_str(); }
void memory(ggml_backend_dev_t dev, size_t * free, size_t * total) { *free = *total = of(dev)->memory; }
enum ggml_backend_dev_type type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void props(ggml_backend_dev_t dev, ggml_backend_dev_props * told) {
    *told = {};
    told->name = told->description = name(dev);
    told->memory_free = told->memory_total = of(dev)->memory;
    told->type = GGML_BACKEND_DEVICE_TYPE_GPU;
    told->caps.async = told->caps.events = true;
}

ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t dev) { return &of(dev)->buft; }
bool supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) { return buft == &of(dev)->buft; }
bool supports_op(ggml_backend_dev_t, const ggml_tensor *) { return true; }

int64_t batch(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS: return 0;
        case GGML_OP_MUL_MAT: return op->ne[1];
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE: return op->ne[2];
        default: return ggml_nrows(op);
    }
}
bool offload_op(ggml_backend_dev_t, const ggml_tensor * op) { return batch(op) >= 32; }

ggml_backend_event_t event_new(ggml_backend_dev_t dev) { return new ggml_backend_event{dev, nullptr}; }
void event_free(ggml_backend_dev_t, ggml_backend_event_t event) { delete event; }
void event_synchronize(ggml_backend_dev_t, ggml_backend_event_t) {}

const char * registry_name(ggml_backend_reg_t) { return "CUDA"; }
size_t device_count(ggml_backend_reg_t) { return gpus.size(); }
ggml_backend_dev_t device(ggml_backend_reg_t, size_t index) { return &gpus[index]->device; }
void * no_function(ggml_backend_reg_t, const char *) { return nullptr; }

Gpu * made(int index, size_t mib) {
    Gpu * gpu = new Gpu;
    gpu->name = "CUDA" + std::to_string(index);
    gpu->memory = mib * MIB;
    gpu->used = 0;
    gpu->buft = {{buft_name, alloc_buffer, alignment, nullptr, alloc_size, nullptr}, &gpu->device, gpu};
    ggml_backend_device_i i = {};
    i.get_name = i.get_description = name;
    i.get_memory = memory;
    i.get_type = type;
    i.get_props = props;
    i.init_backend = init_backend;
    i.get_buffer_type = buffer_type;
    i.get_host_buffer_type = host_buffer_type;
    i.supports_op = supports_op;
    i.supports_buft = supports_buft;
    i.offload_op = offload_op;
    i.event_new = event_new;
    i.event_free = event_free;
    i.event_synchronize = event_synchronize;
    gpu->device = {i, &registry, gpu};
    return gpu;
}

}  // namespace

// So many GPUs, each with so much memory.
extern "C" void fakecuda_register(int count, const int * mib) {
    registry = {GGML_BACKEND_API_VERSION, {registry_name, device_count, device, no_function}, nullptr};
    host_buft = *ggml_backend_cpu_buffer_type();
    host_buft.iface.get_name = host_name;
    host_buft.iface.alloc_buffer = host_alloc;
    for (int index = 0; index < count; index++) gpus.push_back(made(index, mib[index]));
    host_buft.device = &gpus[0]->device;
    ggml_backend_register(&registry);
}

// The same at loading, by LD_PRELOAD, with FAKECUDA="24000 24000".
__attribute__((constructor)) static void by_environment() {
    const char * text = getenv("FAKECUDA");
    int mib[16], count = 0;
    for (char * end; text && count < 16; text = end) {
        const long one = strtol(text, &end, 10);
        if (end == text) break;
        mib[count++] = (int) one;
    }
    if (count) fakecuda_register(count, mib);
}
