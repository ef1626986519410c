"""The command `llamafleet`: one module a command."""
