"""Algorithm 1: collect groups of images, normalise their rewards, update the model; again.

The formulas are in `mixgrpo.maths`. Read `trainer` first (one iteration), then `losses.policy` and
`run` (all iterations, files, stopping).
"""
