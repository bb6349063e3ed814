"""What a run will need: its memory, evaluations and bytes, before it begins.

What it did need is measured in training. Read `estimate` first.
"""
