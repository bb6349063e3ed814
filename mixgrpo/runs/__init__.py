"""A run's folder: who owns it, what was measured in it, and its trained model.

The formats of single files are in `mixgrpo.files`. Read `folder` first, then `load`.
"""
