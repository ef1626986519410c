"""Decisions about the CUDA Toolkit: which one, from where, with which compiler."""
