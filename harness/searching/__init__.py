"""The parts of a search over settings (`python -m harness.search`).

The file: `schema` says what it may hold, `ranges` and `file` read it, `space` turns ranges into
settings. The trials: `storage` and `study` keep them, `trials` judges them, `pruning` says what is
not worth its cost, `runs` reads what they measured, `launcher` runs them, `status` says where they
stand. What came out: `records` holds it, `confirm` makes the sweep that tests the best on fresh
seeds, `report` writes it with `words`, `pictures` (`plots`) and `page`.
"""
