"""Losses: each a function of what the rollout did at some steps and of the velocity there today.

Which steps those are is decided in `mixgrpo.training.batch`. Read `policy`.
"""
