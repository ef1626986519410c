"""What crosses between controller and host. Python's standard library only, on both sides."""
