"""The toolkit job: a CUDA Toolkit by one method, proven before it counts."""
