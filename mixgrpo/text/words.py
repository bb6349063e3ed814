"""Amounts as people say them."""


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
