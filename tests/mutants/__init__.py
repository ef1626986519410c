"""Mutants of the code that decides and judges, and whether the tests kill them. Run by hand.

`python -m tests.mutants` changes one thing at a time in the functions of a room, and runs the tests
that call the changed function: a mutant that no test is red on survives. mutmut makes the mutants;
its own runner starts pytest for each, which takes hours here: this one forks a pytest that has
collected its tests already.
"""
