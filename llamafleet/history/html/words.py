"""What others found, in a line: a comparison, a GPU that is slow."""

from __future__ import annotations

from llamafleet.history.comparison import Comparison
from llamafleet.history.html.view import rate
from llamafleet.history.outliers import Outlier


def difference(found: Comparison | None) -> str:
    """How much B differs from A and how sure that is, or why it can't be said; beside the
    answer. In brackets the interval of 95 % confidence."""
    if found is None:
        return "figures of a free and healthy GPU are on one side alone"
    parts = list(found.why)
    if found.ratio is not None:
        text = percent(found.ratio)
        if found.low is not None and found.high is not None:
            text += f" ({percent(found.low)} to {percent(found.high)})"
        parts.insert(0, text)
    return "; ".join(parts)


def percent(ratio: float) -> str:
    """Never as -0.0."""
    return f"{round(100 * (ratio - 1), 1) + 0.0:+.1f} %"


def slow(found: Outlier) -> str:
    """How far it is below its peers, and the likely reasons."""
    reasons = "; ".join(found.likely) or "nothing in its records tells"
    return (
        f"{found.test}: {rate(found.median_ts)} t/s, {-100 * found.apart:.1f} % below the median "
        f"{rate(found.peers_median_ts)} of {found.peers} peers (modified z {found.z:.1f}); likely "
        f"reason: {reasons}"
    )
