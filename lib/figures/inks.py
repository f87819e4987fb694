"""Colours that the page decides: figures have stand-ins, and style.css says what each is in light and dark."""

INK = "#010203"
"""Text and axes."""
FAINT = "#020304"
"""Grid lines."""
BORDER = "#060708"
"""Ends of rounds, which must be seen."""
GOOD, BAD = "#030405", "#040506"
"""Pairs with equal labels, and with different ones."""
SERIES = tuple(f"#0a0b{number:02x}" for number in range(10))
"""Lines and groups that must be told apart."""

DASHES = ("none", "6 3", "2 2", "8 3 2 3", "10 4")
"""stroke-dasharray of lines one after another, so that no one needs to see colours."""

CSS_NAMES = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    BORDER: "var(--muted)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
    **{stand_in: f"var(--series-{number})" for number, stand_in in enumerate(SERIES)},
}
"""What stands in the page for each."""


def series(number: int) -> str:
    """The stand-in for a line or group; after the last colour the first comes again."""
    return SERIES[number % len(SERIES)]


def dash(number: int) -> str:
    """The stroke-dasharray of a line. Changes slower than the colour, so that 50 lines differ."""
    return DASHES[(number + number // len(SERIES)) % len(DASHES)]
