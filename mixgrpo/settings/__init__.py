"""The configuration of a run: its fields, its file, its identity and whom it is trusted from.

A sweep's file is `harness.study`. Read `config` first, then `identity`.
"""
