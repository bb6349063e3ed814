"""The models that are trained: they encode prompts, predict the velocity and decode latents.

`mixgrpo.sampling` takes steps with them. Read `protocol` first, then `load`.
"""
