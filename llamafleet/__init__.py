"""llamafleet: from a bare NVIDIA driver to a proven, GPU-offloading llama-cpp-python."""

__version__ = "0.1.0"
