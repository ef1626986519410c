"""Mends the llama-cpp-python of an environment that a user has, on this machine."""
