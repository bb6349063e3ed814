"""What the folders of runs say: their states, attempts, environments and costs.

Nothing here starts a run; what is measured in it is read by `harness.analysis`. Read `state` first.
"""
