"""What `--compare A B ...` prints and writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from lib.errors import UserError
from lib.report.comparison.contrast import Contrast
from lib.runtime.packages import has
from lib.session.story import Story

KIND = "comparison"
WIDEST_CELL = 48
"""Characters of a cell on the terminal; longer paths are broken."""
_OURS = f'content="AND, Anchor Neighbourhood Discovery: {KIND}"'


def compare(sessions: Sequence[str], page: Optional[str], folder: str) -> None:
    """Print the comparison and write it as a page.

    Args:
        sessions: the folders, at least two.
        page: where the page goes, or None for a new file in `folder`.
        folder: the folder of sessions.

    Raises:
        UserError: one of them is no session, or the page's place is taken or cannot be written.
    """
    contrast = Contrast([Story.read(Path(session), "--compare") for session in sessions])
    path, instead = _place(contrast, page, folder)
    if not has("jinja2") and page is not None:
        raise UserError("--compare-html: a page needs the package jinja2; pip install jinja2")
    try:
        print(in_words(contrast))
    finally:  # also where nobody reads the words
        if has("jinja2"):
            _write(contrast, path)
    if has("jinja2"):
        print(f"\nas a page: {path}{' (instead of the comparison that was there)' if instead else ''}")
    else:
        print("\nno page: it needs the package jinja2 (pip install jinja2)")


def _write(contrast: Contrast, path: Path) -> None:
    from lib.report.comparison.as_page import as_page
    from lib.report.page import write

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(as_page(contrast), path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; choose another place with --compare-html"
        ) from None


def _place(contrast: Contrast, page: Optional[str], folder: str) -> tuple[Path, bool]:
    """Where the page goes, and whether it replaces a comparison. Nothing else is ever replaced.

    Raises:
        UserError: another file is there.
    """
    if page is None:
        names = "-".join(story.name for story in contrast.stories)
        stem = f"compare-{names if len(names) <= 100 else f'{len(contrast.stories)}-sessions'}"
        number, path = 1, Path(folder) / f"{stem}.html"
        while path.exists():
            number += 1
            path = Path(folder) / f"{stem}-{number}.html"
        return path, False
    path = Path(page)
    if not path.exists():
        return path, False
    if path.is_file() and _OURS in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        return path, True
    raise UserError(f"--compare-html {page}: something else is there already; choose another place")


def in_words(contrast: Contrast) -> str:
    """For the terminal."""
    from prettytable import PrettyTable

    from lib.report.comparison.text_plot import text_plot

    parts = [f"{letter}  {label}: {story.progress}" for letter, label, story in contrast.rows()]
    for note in contrast.notes:
        parts.append(f"note: {note}")
    for title, (head, body) in contrast.tables().items():
        table = PrettyTable(head)
        table.align = "r"
        table.max_width = WIDEST_CELL
        table.align[head[0]] = "l"
        table.add_rows(body) if hasattr(table, "add_rows") else [table.add_row(row) for row in body]
        parts += ["", title, table.get_string() if body else "none"]
    judged = any(story.latest("knn_top1") is not None for story in contrast.stories)
    first = ("top-1", "knn_top1", True) if judged else ("mean cosine with the nearest", "neighbour_cosine", False)
    for what, key, percent in (first, ("loss", "loss", False)):
        plot = text_plot([contrast.curve(place, key) for place in range(len(contrast.stories))], percent)
        if plot:
            parts += ["", f"{what} over the epochs", plot]
    return "\n".join(parts)
