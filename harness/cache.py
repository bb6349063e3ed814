"""Where a sweep keeps copies that save time and decide nothing, and how a file is known again.

`runs/<sweep>/.cache/` may be removed at any time.
"""

from pathlib import Path

FOLDER = ".cache"


def stamp(file: Path) -> list[int] | None:
    """Size and time of change (ns), one of which changes when a file does; None where no file
    can be read."""
    try:
        stat = file.stat()
    except OSError:  # a loop of links, too
        return None
    return [stat.st_size, stat.st_mtime_ns]
