"""The rewards: what scores images against their prompts, and the guard around each call.

What becomes of the scores is in `mixgrpo.maths.advantages`. Read `protocol` first, then `load`.
"""
