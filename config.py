"""pyinfra executes this before it reads the inventory and connects to any host."""

from operations.entry import enter

enter()
