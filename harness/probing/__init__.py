"""Measures finished runs with the probes that a sweep names, in separate processes.

What a probe computes is in `mixgrpo.evaluation`. Read `tasks` first.
"""
