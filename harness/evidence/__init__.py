"""What may be concluded from few seeds. `harness.stats` applies it to runs, paired by seed.

Everything here is mathematics on numbers: no files, sweeps or data frames. The unit of evidence is
the paired difference: arm minus reference with the same seed, which share prompts and noise. Read
first `verdict` (what is concluded), then `moderation` (from which spread) and `sequential` (seeds
until it is decided). Beside them: `resolution` and `power` (what how many seeds show), `families`
(many claims), `collapse`, `variance` (images, prompts and seeds). Docstrings give formulas and
their sources.
"""
