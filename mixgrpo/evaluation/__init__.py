"""Judges a model on held-out prompts, and measures it otherwise once it is trained.

Nothing here trains. Read `held_out` first.
"""
