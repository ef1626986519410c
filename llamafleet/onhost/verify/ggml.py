"""ggml's tensors as its C code has them, read in place: no copy of any data.

llama-cpp-python binds neither the structure nor these functions. What is read by an outdated
layout would be nonsense, so `opened` first reads tensors that ggml itself makes, and compares.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

WEIGHTS, COMPUTE = 1, 2
"""enum ggml_backend_buffer_usage: of a model's weights, of a graph's results. A cache has none."""
INPUT_FLAG = 1
"""GGML_TENSOR_FLAG_INPUT: filled in by the caller of the graph."""

_OBJECT_BYTES = 32
"""sizeof(struct ggml_object), which ggml_tensor_overhead() counts besides the tensor."""
_F32 = 0
"""GGML_TYPE_F32."""


class Unreadable(Exception):
    """ggml's structures can't be read; the text says why."""


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h (ggml 0.25.3, llama-cpp-python 0.3.36)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    """struct ggml_init_params of ggml.h."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_SIZE, _BOOL, _LONG = ctypes.c_size_t, ctypes.c_bool, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ggml_init": (_POINTER, _InitParams),
    "ggml_free": (None, _POINTER),
    "ggml_new_tensor_2d": (_POINTER, _POINTER, _INT, _LONG, _LONG),
    "ggml_view_1d": (_POINTER, _POINTER, _POINTER, _LONG, _SIZE),
    "ggml_mul_mat": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_set_name": (_POINTER, _POINTER, _TEXT),
    "ggml_set_input": (None, _POINTER),
    "ggml_get_name": (_POINTER, _POINTER),
    "ggml_get_data": (_POINTER, _POINTER),
    "ggml_op_name": (_TEXT, _INT),
    "ggml_nbytes": (_SIZE, _POINTER),
    "ggml_tensor_overhead": (_SIZE,),
    "ggml_backend_cpu_buffer_type": (_POINTER,),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, _POINTER, _POINTER),
    "ggml_backend_buffer_free": (None, _POINTER),
    "ggml_backend_buffer_name": (_TEXT, _POINTER),
    "ggml_backend_buffer_is_host": (_BOOL, _POINTER),
    "ggml_backend_buffer_get_usage": (_INT, _POINTER),
    "ggml_backend_dev_count": (_SIZE,),
    "ggml_backend_dev_get": (_POINTER, _SIZE),
    "ggml_backend_dev_name": (_TEXT, _POINTER),
    "ggml_backend_dev_supports_op": (_BOOL, _POINTER, _POINTER),
}
"""What each returns, and its arguments."""


def opened(library: Any) -> SimpleNamespace:
    """ggml's functions by their names without "ggml_", once its tensors were seen to be read well.

    Raises Unreadable.
    """
    functions = SimpleNamespace()
    for name, (result, *arguments) in _SIGNATURES.items():
        try:
            # A function object of our own: the attributes of the library are everybody's.
            function = library[name]
        except AttributeError as error:
            raise Unreadable(f"ggml does not export {name}") from error
        function.restype, function.argtypes = result, arguments
        setattr(functions, name.removeprefix("ggml_"), function)
    _prove_layout(functions)
    return functions


def _prove_layout(ggml: SimpleNamespace) -> None:
    """Tensors that ggml makes are read as what they were made to be. Raises Unreadable."""
    size = ggml.tensor_overhead() - _OBJECT_BYTES
    if size != ctypes.sizeof(Tensor):
        raise Unreadable(f"a tensor of ggml has {size} bytes, {ctypes.sizeof(Tensor)} are known")
    context = ggml.init(_InitParams(1 << 16, None, True))
    first = ggml.new_tensor_2d(context, _F32, 8, 4)
    second = ggml.new_tensor_2d(context, _F32, 8, 2)
    view = ggml.view_1d(context, first, 8, 32)
    product = ggml.mul_mat(context, first, second)
    ggml.set_name(first, b"known")
    ggml.set_input(first)
    buffer = ggml.backend_alloc_ctx_tensors_from_buft(context, ggml.backend_cpu_buffer_type())
    one, two = Tensor.from_address(first), Tensor.from_address(second)
    seen, made = Tensor.from_address(view), Tensor.from_address(product)
    found = {
        "buffer": (one.buffer, buffer),
        "ne": (list(one.ne), [8, 4, 1, 1]),
        "nb": (list(one.nb), [4, 32, 128, 128]),
        "op": ([ggml.op_name(t.op) for t in (one, seen, made)], [b"NONE", b"VIEW", b"MUL_MAT"]),
        "flags": ((one.flags & INPUT_FLAG, two.flags & INPUT_FLAG), (INPUT_FLAG, 0)),
        "src": (list(made.src), [first, second, *[None] * 8]),
        "view_src": ((seen.view_src, one.view_src), (first, None)),
        "view_offs": (seen.view_offs, 32),
        "data": (one.data, ggml.get_data(first)),
        "name": (one.name, b"known"),
    }
    wrong = [name for name, (here, there) in found.items() if here != there]
    if buffer:
        ggml.backend_buffer_free(buffer)
    ggml.free(context)
    if wrong or not buffer:
        raise Unreadable(f"ggml's tensors have another layout: {', '.join(wrong) or 'no buffer'}")
