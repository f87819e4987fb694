"""`python3 -m lib.config` writes the options table into docs/options.md."""

from pathlib import Path

from lib.config.render import markdown

OPTIONS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "options.md"
START, END = "<!-- options: written by `python3 -m lib.config`, checked by the tests -->", "<!-- end of options -->"


def with_options(text: str) -> str:
    """`text` with the current options table between the two marks."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{markdown().strip()}\n\n{END}{after}"


if __name__ == "__main__":
    OPTIONS_PAGE.write_text(with_options(OPTIONS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
