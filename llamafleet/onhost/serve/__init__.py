"""One service: the built llama-cpp-python behind an OpenAI-compatible interface."""
