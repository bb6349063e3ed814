"""The formulas of the paper: window, schedule, steps, solver, advantages and objective.

Pure functions of numbers and tensors; no settings, no files. Read `steps` first, then `objective`.
"""
