"""The process and its machine: ranks, signals, clocks, and calls of code that is not ours.

What is computed is elsewhere. Read `ranks` first.
"""
