"""What a sweep file asks for: its arms, seeds, settings, views and published rows.

Nothing here looks at a run or writes a file. Read `spec` first, then `load`.
"""
