"""The configuration of a run: its fields, its file, its identity and whose code it may name.

Sweep files are read by `harness.study`. Read `config` first, then `identity`.
"""
