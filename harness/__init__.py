import mixgrpo  # noqa: F401  # first, so that a command hears signals while it is imported
