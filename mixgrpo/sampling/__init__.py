"""From noise to images: which steps are SDE steps, and the trajectories of a group.

The formula of a single step is in `mixgrpo.maths`. Read `plan` first, then `walk` (the loop over
steps) and `rollout` (groups of images).
"""
