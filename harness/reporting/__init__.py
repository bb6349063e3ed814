"""Makes a sweep's report of its analysis: findings, tables, figures and one page.

No number is computed from runs here. Read `write` first, then `content` and `findings`.
"""
