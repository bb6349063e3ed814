"""Studies from Python: their measurements as data frames, comparisons of arms, plots.

sweep files (`load`) or run folders (`found`) -> `pool` -> `study.Study`, which `query` filters,
`compare` compares and `plot` draws. The measurements are read by `harness.analysis`, the verdicts
are those of `harness.evidence`. Read `study` first.
"""
