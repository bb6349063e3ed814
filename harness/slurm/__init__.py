"""Slurm's own programs, and a record of what was submitted to it.

What a run asks of Slurm is in `harness.launching.resources`. Read `submissions` first.
"""
