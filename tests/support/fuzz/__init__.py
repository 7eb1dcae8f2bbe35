"""Seeded fuzzing of everything the program reads. `PYTHONPATH=tests python -m support.fuzz` runs it.

A case is bytes that depend on target, seed and number alone (and on the libraries that wrote the sound files it
was made from), so a failing one is made again from its number.
"""
