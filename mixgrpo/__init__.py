import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # `python -m mixgrpo.evaluate` or `-m harness.sweep` imports this first
    from mixgrpo.compute.signals import end_at_once

    end_at_once()
