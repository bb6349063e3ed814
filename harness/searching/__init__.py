"""The parts of a search over settings (`python -m harness.search`).

`file` reads the search file, `space` turns its ranges into settings, `study` keeps the trials,
`pruning` stops what is not worth its cost, `launcher` runs it, `records` holds what came out,
`confirm` makes the sweep that tests the best on fresh seeds, `report` writes the report.
"""
