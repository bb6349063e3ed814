"""The models that are trained: they encode prompts, predict the velocity and decode latents.

How steps are taken with them is `mixgrpo.sampling`. Read `protocol` first, then `load`.
"""
