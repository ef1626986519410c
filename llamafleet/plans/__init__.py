"""Plans decide: pure functions from facts and settings to what must be done, and why."""
