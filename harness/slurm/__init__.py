"""Calls to Slurm, the records of what was submitted to it, and the states of the jobs.

What a run asks of Slurm is in `harness.launching.resources`. Read `scheduler` first.
"""
