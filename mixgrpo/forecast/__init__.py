"""What a run will need: its memory, evaluations and bytes, before it begins.

What a run did need is measured in `training`. Read `estimate` first.
"""
