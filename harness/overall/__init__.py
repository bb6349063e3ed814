"""One page over the reports of all studies (`python -m harness.report --all`).

What a single study says is in `harness.reporting`. Read `questions` first.
"""
