"""The embedded task: small scenes of coloured shapes, drawn, described, scored and learned.

To the trainer it is one model and four rewards among others. Read `prompts` first.
"""
