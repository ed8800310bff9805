"""Numbers for people."""

from __future__ import annotations


def size_text(count: float) -> str:
    """Bytes: 512 B, 1.50 MB."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.{2 if power else 0}f} {units[power]}"


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 10 min."""
    hours, rest = divmod(max(0, round(seconds)), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def percent(mean: float, std: float | None = None, n: int | None = None) -> str:
    """A share: 47.6 %, 47.6 ± 0.3 %, 47.6 ± 0.3 % (n=5)."""
    spread = "" if std is None else f" ± {100 * std:.1f}"
    return f"{100 * mean:.1f}{spread} %" + ("" if n is None else f" (n={n})")
