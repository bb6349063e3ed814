"""The embedded task: small scenes of coloured shapes, drawn, described, scored and learned.

The trainer knows it as one model and four rewards among others. Read `prompts` first.
"""
