"""Files that are whole or absent: atomic writes, logs, locks, checkpoints and checked records.

What is in a run's folder is decided by `mixgrpo.runs`. Read `atomic` first, then `checkpoint`.
"""
