"""`python3 -m lib.config` writes the options table into README.md."""

from pathlib import Path

from lib.config.render import markdown

README = Path(__file__).resolve().parents[2] / "README.md"
START, END = "<!-- options: written by `python3 -m lib.config`, checked by the tests -->", "<!-- end of options -->"


def with_options(text: str) -> str:
    """`text` with the current options table between the two marks."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{markdown().strip()}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_options(README.read_text(encoding="utf-8")), encoding="utf-8")
