"""What there is by name: models, rewards and entry points, known without loading any of them.

They are loaded by `mixgrpo.models` and `mixgrpo.rewards`. Read `registry` first.
"""
