"""Measures finished runs with the probes that a sweep names, in processes of their own.

What a probe computes is in `mixgrpo.evaluation`. Read `tasks` first.
"""
