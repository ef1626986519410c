"""Facts read a host."""
