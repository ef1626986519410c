"""Decisions about the driver: its verdict, the hold on it, a reboot for it."""
