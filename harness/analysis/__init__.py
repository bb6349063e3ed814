"""From run folders to data frames, and from these to comparisons with their intervals.

No words, tables or figures are made here. Read `analyse` first.
"""
