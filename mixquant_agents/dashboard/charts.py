"""Small SVG charts, drawn here so that the live page and the self-contained report share them and need no library.

Everything that could hold foreign text is escaped; figures come as numbers. Colours are CSS classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from markupsafe import Markup

__all__ = ["histogram", "line_chart", "nice_ceiling"]

WIDTH, HEIGHT = 600, 140


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 2.5, 5 × 10ⁿ at or above ``value``: the top of an axis."""
    if value <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    for step in (1, 2, 2.5, 5, 10):
        if value <= step * size * (1 + 1e-9):
            return step * size
    return 10 * size  # pragma: no cover - 10 always holds


def line_chart(
    title: str,
    labels: Sequence[str],
    lines: Sequence[tuple[str, str, Sequence[float | None]]],
    show: Callable[[float], str],
    *,
    top: float | None = None,
    bars: bool = False,
) -> Markup:
    """A figure of one or more lines over common intervals.

    Args:
        labels: one per interval, shown on hover; the first and last also on the axis.
        lines: ``(name, CSS class, values)``; ``None`` breaks a line.
        show: writes a value.
        top: fixed top of the axis.
        bars: columns instead of lines.
    """
    known = [value for _, _, values in lines for value in values if value is not None]
    if not known:
        return _figure(title, lines, Markup('<p class="nothing">nothing measured here yet</p>'), "", "", show, 0)
    ceiling = top or nice_ceiling(max(known) * 1.05)
    count = len(labels)
    step = WIDTH / max(1, count)
    parts = [_grid()]
    for _, css, values in lines:
        if bars:
            parts += [
                f'<rect class="{css}" x="{n * step + step * 0.1:.2f}" y="{_y(value, ceiling):.2f}" '
                f'width="{max(step * 0.8, 0.6):.2f}" height="{HEIGHT - _y(value, ceiling):.2f}"/>'
                for n, value in enumerate(values)
                if value
            ]
        else:
            parts += _strokes(css, values, step, ceiling)
    for n, label in enumerate(labels):
        text = "; ".join(f"{name} {show(value)}" for name, _, values in lines if (value := values[n]) is not None)
        parts.append(
            f'<rect class="hit" x="{n * step:.2f}" y="0" width="{step:.2f}" height="{HEIGHT}">'
            f"<title>{escape(label)}: {escape(text or 'nothing')}</title></rect>"
        )
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f"{''.join(parts)}</svg>"
    )
    return _figure(title, lines, Markup(svg), labels[0], labels[-1], show, ceiling)  # noqa: S704 # numbers and escaped text


def _y(value: float, ceiling: float) -> float:
    return HEIGHT * (1 - max(0.0, min(1.0, value / ceiling)))


def _grid() -> str:
    return "".join(
        f'<line class="gridline" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (0.5, HEIGHT / 2, HEIGHT - 0.5)
    )


def _strokes(css: str, values: Sequence[float | None], step: float, ceiling: float) -> list[str]:
    """Unbroken stretches as polylines; a value alone between unknown ones as a dot."""
    strokes: list[str] = []
    stretch: list[str] = []
    for n, value in enumerate((*values, None)):
        if value is not None:
            stretch.append(f"{(n + 0.5) * step:.2f},{_y(value, ceiling):.2f}")
            continue
        if len(stretch) == 1:
            x, y = stretch[0].split(",")
            strokes.append(f'<path class="{css} dot" d="M{x} {y}h0.01"/>')
        elif stretch:
            strokes.append(f'<polyline class="{css}" points="{" ".join(stretch)}"/>')
        stretch = []
    return strokes


def _figure(
    title: str,
    lines: Sequence[tuple[str, str, Sequence[float | None]]],
    svg: Markup,
    first: str,
    last: str,
    show: Callable[[float], str],
    ceiling: float,
) -> Markup:
    keys = "".join(f'<span class="key {css}">{escape(name)}</span>' for name, css, _ in lines if name)
    newest = []
    for name, _, values in lines:
        latest = next((value for value in reversed(values) if value is not None), None)
        if latest is not None:
            newest.append(f"{name} {show(latest)}".strip())
    spoken = escape(f"{title}: latest {', '.join(newest)}" if newest else f"{title}: nothing measured")
    axis = f'<span class="top">{escape(show(ceiling))}</span>' if ceiling else ""
    ends = f'<div class="ends"><span>{escape(first)}</span><span>{escape(last)}</span></div>' if first else ""
    return Markup(  # noqa: S704 # every text above is escaped
        f'<figure class="chart" role="img" aria-label="{spoken}"><figcaption><b>{escape(title)}</b>{keys}</figcaption>'
        f'<div class="plot">{svg}{axis}</div>{ends}</figure>'
    )


def histogram(
    title: str, bars: Sequence[tuple[float, float, float]], names: tuple[str, str], show: Callable[[float], str]
) -> Markup:
    """Two distributions over the same log-spaced bars: A filled, B as an outline. The axis says that it is
    logarithmic.

    Args:
        bars: ``(value, share of A, share of B)``.
    """
    keys = f'<span class="key side-a">{escape(names[0])}</span><span class="key side-b">{escape(names[1])}</span>'
    if not bars:
        body = '<p class="nothing">neither side has measured this</p>'
        # The title is escaped, and the body is ours.
        return Markup(f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption>{body}</figure>')  # noqa: S704
    ceiling = max(max(a, b) for _, a, b in bars) or 1.0
    step = WIDTH / len(bars)
    parts = [_grid()]
    outline = [f"M0 {HEIGHT}"]
    for n, (value, a, b) in enumerate(bars):
        parts.append(
            f'<rect class="side-a" x="{n * step + 0.5:.2f}" y="{_y(a, ceiling):.2f}" width="{max(step - 1, 0.6):.2f}" '
            f'height="{HEIGHT - _y(a, ceiling):.2f}"/>'
        )
        outline.append(f"V{_y(b, ceiling):.2f}H{(n + 1) * step:.2f}")
        parts.append(
            f'<rect class="hit" x="{n * step:.2f}" y="0" width="{step:.2f}" height="{HEIGHT}"><title>about '
            f"{escape(show(value))}: {a:.1%} of A, {b:.1%} of B</title></rect>"
        )
    outline.append(f"V{HEIGHT}")
    ticks = "".join(f"<span>{escape(show(bars[n][0]))}</span>" for n in sorted({0, len(bars) // 2, len(bars) - 1}))
    parts.append(f'<path class="side-b" d="{"".join(outline)}"/>')
    return Markup(  # noqa: S704 # numbers and escaped text
        f'<figure class="chart" role="img" aria-label="{escape(title)}, distributions of A and B, logarithmic axis">'
        f'<figcaption><b>{escape(title)}</b>{keys}</figcaption><div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'preserveAspectRatio="none" aria-hidden="true" focusable="false">{"".join(parts)}</svg>'
        f'<span class="top">{ceiling:.0%} of turns</span></div>'
        f'<div class="ends">{ticks}</div><div class="axis-note">logarithmic time axis</div></figure>'
    )
