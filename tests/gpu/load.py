"""Another process on a GPU: `load.py MIB hold|compute`, until it is killed.

By the driver's own library alone, so that it runs where nothing of CUDA is installed.
"""

from __future__ import annotations

import ctypes
import sys
import time

PTX = b"""
.version 6.4
.target sm_52
.address_size 64
.visible .entry spin(.param .u64 out)
{
    .reg .pred %p;
    .reg .u32 %i, %v;
    .reg .u64 %a;
    ld.param.u64 %a, [out];
    mov.u32 %i, 0;
    mov.u32 %v, 7;
again:
    mad.lo.u32 %v, %v, 1664525, 1013904223;
    add.u32 %i, %i, 1;
    setp.lt.u32 %p, %i, 200000;
    @%p bra again;
    st.global.u32 [%a], %v;
    ret;
}
"""
BLOCKS, THREADS = 2048, 256
"""Enough for every multiprocessor of any GPU."""


def call(name: str, *arguments: object) -> None:
    status = getattr(cuda, name)(*arguments)
    if status:
        raise SystemExit(f"{name} returned {status}")


cuda = ctypes.CDLL("libcuda.so.1")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(int(sys.argv[1]) << 20))
if sys.argv[2] == "hold":
    print("ready", flush=True)
    while True:
        time.sleep(60)
module, function = ctypes.c_void_p(), ctypes.c_void_p()
call("cuModuleLoadData", ctypes.byref(module), PTX)
call("cuModuleGetFunction", ctypes.byref(function), module, b"spin")
arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(memory), ctypes.c_void_p))
first = True
while True:
    call("cuLaunchKernel", function, BLOCKS, 1, 1, THREADS, 1, 1, 0, None, arguments, None)
    call("cuCtxSynchronize")
    if first:
        print("ready", flush=True)
    first = False
