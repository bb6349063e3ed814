"""Starts the runs that are missing, in this process, in local ones or on Slurm, and follows them.

What a run computes is `mixgrpo.training`. Read `launcher` first, then `job`.
"""
