"""Jobs and deployments that are killed, stopped and starved at random: what is there stays whole.

`python -m tests.faults build` does it to the build job, `python -m tests.faults deploy` to whole
deployments on this machine. After each fault the build in use must be as it was, no stamp may
claim what is not there, and the next run must end well and leave nothing behind.
"""
