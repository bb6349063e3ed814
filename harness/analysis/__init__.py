"""From run folders to data frames, and from these to comparisons with their intervals.

run folders -> `results` (frames of runs, iterations, evaluations) -> `quality`, `cost` ->
`analyse`: each a pure function of the one before. Words, tables and figures are made elsewhere.
Read `results` first, then `analyse`.
"""
