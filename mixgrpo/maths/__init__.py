"""The formulas of the paper: window, schedule, steps, solver, advantages and objective.

Pure functions of numbers and tensors, without settings or files. Read `steps`, then `objective`.
"""
