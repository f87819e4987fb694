"""Curves laid over each other on a terminal."""

from collections.abc import Sequence

WIDTH, HEIGHT = 64, 12


def text_plot(curves: Sequence[Sequence[tuple[float, float]]], percent: bool) -> str:
    """A plot of characters: the first curve in `A`, the next in `B`; `*` where several meet. Empty without points.

    Args:
        curves: their (x, y).
        percent: y is a share of 1 and shown in per cent.
    """
    points = [point for curve in curves for point in curve]
    if not points:
        return ""
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points))
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    for place, curve in enumerate(curves):
        for x, y in curve:
            column = round((x - left) / ((right - left) or 1) * (WIDTH - 1))
            row = HEIGHT - 1 - round((y - low) / ((high - low) or 1) * (HEIGHT - 1))
            mark = chr(ord("A") + place % 26)
            cells[row][column] = mark if cells[row][column] in (" ", mark) else "*"
    ends = {HEIGHT - 1: _shown(low, percent)}
    if high > low:
        ends[0] = _shown(high, percent)
    margin = max(map(len, ends.values()))
    lines = [f"{ends.get(row, ''):>{margin}} |{''.join(line).rstrip()}" for row, line in enumerate(cells)]
    lines.append(" " * margin + " +" + "-" * WIDTH)
    first, last = f"{left:g}", f"{right:g} epochs"
    lines.append(" " * (margin + 2) + first + last.rjust(WIDTH - len(first)))
    return "\n".join(lines)


def _shown(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.3g}"
