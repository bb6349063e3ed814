"""Models, rewards and other packages' entry points by name, without loading any of them.

`mixgrpo.models` and `mixgrpo.rewards` load them. Read `registry` first.
"""
