"""Further parts of a report, each for a question of its own; `harness.study.views` names them.

What every report has is in `harness.reporting`. Read `view` first.
"""
