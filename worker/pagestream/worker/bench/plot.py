"""A picture of a serving benchmark: percentiles of each latency, and throughput, against the load.

matplotlib draws it, which the extra `bench` installs. Knows results, not how they came about.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import ConfigError
from .metrics import Spread
from .serve import Served

LATENCIES = {
    "ttft_ms": "Time to first token (TTFT)",
    "tpot_ms": "Time per output token (TPOT)",
    "itl_ms": "Inter-token latency (ITL)",
    "e2el_ms": "End to end (E2EL)",
}
PERCENTILES = {
    "p50": ("#2a6f97", "o", "-"),
    "p90": ("#e09f3e", "s", "--"),
    "p99": ("#9e2a2b", "^", ":"),
}
"""Colour, marker and line of each."""
LOG_FROM_RATIO = 8
"""A range of values this wide gets a logarithmic axis."""


def require_matplotlib() -> None:
    """Say at the start, not after the measurements, that nothing can be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed: pip install 'pagestream[bench]'"
        )


def plot_latencies(results: Sequence[Served], title: str, path: Path) -> None:
    """Draw the results, repeats of a rate as their median, and write a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = _places(results)
    figure, panels = pyplot.subplots(2, 3, figsize=(14, 7.5), layout="constrained", sharex=True)
    figure.suptitle(title, fontsize=12)
    latency_panels = [panels[0][0], panels[0][1], panels[1][0], panels[1][1]]
    for panel, (name, label) in zip(latency_panels, LATENCIES.items(), strict=True):
        _draw_latency(panel, places, name, label)
    panels[0][0].legend(title="percentile", frameon=False)
    _draw_line(panels[0][2], places, "output_tokens_per_s", "Output throughput", "tokens/s")
    panels[0][2].set_ylim(bottom=0)
    _draw_requests(panels[1][2], places)
    for panel in panels[1]:
        panel.set_xlabel("offered load (requests/s)")
        _label_rates(panel, places)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _places(results: Sequence[Served]) -> dict[float, list[Served]]:
    """Where each rate stands on the axis: itself; all at once stands right of the others."""
    finite = [one.rate for one in results if one.rate is not None]
    beyond = 1.6 * max(finite, default=1.0)
    places: dict[float, list[Served]] = {}
    for one in sorted(results, key=lambda one: one.rate or beyond):
        places.setdefault(one.rate or beyond, []).append(one)
    return places


def _columns(
    points: Sequence[tuple[float, float]], places: dict[float, list[Served]]
) -> tuple[list[float], list[float]]:
    """Points as x and y; no line leads to all at once, which is no rate."""
    finite = [(x, y) for x, y in points if places[x][0].rate is not None]
    others = [(x, y) for x, y in points if places[x][0].rate is None]
    gap = [(others[0][0], nan)] if finite and others else []
    whole = [*finite, *gap, *others]
    return [x for x, _ in whole], [y for _, y in whole]


def _draw_latency(panel: Any, places: dict[float, list[Served]], name: str, label: str) -> None:
    from matplotlib.ticker import LogLocator

    lowest, highest = float("inf"), 0.0
    for percentile, (colour, marker, line) in PERCENTILES.items():
        points = [(x, _percentile(runs, name, percentile)) for x, runs in places.items()]
        drawn = [(x, y) for x, y in points if y is not None]
        if not drawn:
            continue
        lowest, highest = min(lowest, *(y for _, y in drawn)), max(highest, *(y for _, y in drawn))
        panel.plot(*_columns(drawn, places), line, color=colour, marker=marker, label=percentile)
    panel.set_title(label, fontsize=11)
    panel.set_ylabel("ms")
    if highest > LOG_FROM_RATIO * lowest > 0:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:,g}")
        panel.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        panel.yaxis.set_minor_formatter("{x:,g}")
    else:
        panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3, which="both")


def _draw_line(
    panel: Any, places: dict[float, list[Served]], name: str, title: str, unit: str, **style: Any
) -> None:
    points = [(x, median(getattr(one.summary, name) for one in runs)) for x, runs in places.items()]
    panel.plot(*_columns(points, places), **{"marker": "o", "color": "#386641", **style})
    panel.set_title(title, fontsize=11)
    panel.set_ylabel(unit)
    panel.grid(alpha=0.3)


def _draw_requests(panel: Any, places: dict[float, list[Served]]) -> None:
    title, unit = "Requests completed", "requests/s"
    _draw_line(panel, places, "requests_per_s", title, unit, label="completed")
    summaries = [one.summary for runs in places.values() for one in runs]
    if all(summary.goodput_requests_per_s is not None for summary in summaries):
        style = {"label": "meeting all objectives", "color": "#9e2a2b", "marker": "x"}
        _draw_line(panel, places, "goodput_requests_per_s", title, unit, linestyle="--", **style)
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)


def _label_rates(panel: Any, places: dict[float, list[Served]]) -> None:
    from matplotlib.ticker import NullLocator

    if max(places) > LOG_FROM_RATIO * min(places):
        panel.set_xscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    labels = [
        "all at\nonce" if runs[0].rate is None else f"{runs[0].rate:g}" for runs in places.values()
    ]
    panel.set_xticks(list(places), labels)


def _percentile(runs: Sequence[Served], name: str, percentile: str) -> float | None:
    spreads: list[Spread | None] = [getattr(one.summary, name) for one in runs]
    values = [getattr(spread, percentile) for spread in spreads if spread is not None]
    return median(values) if values else None
