"""What runs on a host: jobs, verification, benchmark. Python's standard library only.

Shipped as one zipapp; modules in here import each other and nothing else of llamafleet.
"""
