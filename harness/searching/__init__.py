"""A search over settings: its file, its trials in Optuna's storage, and its report.

How runs are started is in `harness.launching`, how arms are compared in `harness.analysis`. Read
`trials` first, which says what becomes of a trial; then `study` (the storage) and `records` (the
one table from which `outcome`, `plots` and `confirm` make words, figures and the next sweep).
"""
