"""Text that people read: escaped for where it goes, words for numbers, and "did you mean".

Nothing here knows of runs or settings. Read `escape` first.
"""
