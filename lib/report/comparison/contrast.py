"""What differs between sessions, as tables of text."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Optional

from lib.config import OPTIONS, in_effect, value_text
from lib.logger.progress import duration
from lib.session.story import Story, finding_text, finding_words

Table = tuple[list[str], list[list[str]]]
"""Column heads and rows."""

_MEASURE = ("dataset", "labels", "protocol", "knn_k", "knn_sigma", "limit_test")
"""Options that decide what an accuracy means."""
_LOSS = ("npc_temperature", "ANs_size")
"""Options that decide what a loss means."""
_STARTS = {
    "code": "code",
    "device": "device",
    "precision": "computed in",
    "processes": "processes",
    "train_images": "training images",
    "test_images": "test images",
    "skipped_images": "images left out",
}
"""What starts.jsonl says that may differ, beside the options."""


class Contrast:
    """Sessions side by side.

    Args:
        stories: at least two.

    Attributes:
        labels: what they are called here: their names if these differ, else their paths as given.
        letters: A, B, C ...
    """

    def __init__(self, stories: Sequence[Story]):
        self.stories = list(stories)
        names = [story.name for story in stories]
        paths = [str(story.folder.path) for story in stories]
        self.labels = names if len(set(names)) == len(names) else paths
        self.letters = [_letter(place) for place in range(len(self.stories))]

    def rows(self) -> Iterator[tuple[str, str, Story]]:
        """Letter, label and story of each."""
        return zip(self.letters, self.labels, self.stories)

    @property
    def notes(self) -> list[str]:
        """What must be known to read the figures."""
        notes = []
        for figures, options in (("accuracies", _MEASURE), ("losses", _LOSS)):
            differing = [name for name in options if len({_shown(story, name) for story in self.stories}) > 1]
            if differing:
                verb = "differs" if len(differing) == 1 else "differ"
                notes.append(f"{figures} are not measured alike: {', '.join(differing)} {verb}")
        counts, images, contents = (
            {_started(story, key) for story in self.stories} - {None}
            for key in ("train_images", "fingerprint", "contents")
        )
        if len(counts) > 1:
            notes.append("losses are not measured alike: the numbers of training images differ, and chance is log N")
        elif len(images) > 1:
            notes.append("accuracies and losses are not measured alike: the training images differ")
        elif len(contents) > 1:
            notes.append("accuracies and losses are not measured alike: training images of the same names differ")
        unfinished = [letter for letter, _, story in self.rows() if not story.finished]
        if unfinished:
            notes.append(f"not finished: {', '.join(unfinished)}")
        return notes

    def tables(self) -> dict[str, Table]:
        """Every table by its title, in the order of reading."""
        return {
            "options and circumstances that differ": self.differences(),
            "results": self.results(),
            **self.by_round(),
        }

    def differences(self) -> Table:
        """A row for each option or circumstance in which not all agree."""
        body = []
        names = [option.name for option in OPTIONS if option.kept]
        names += sorted({name for story in self.stories for name in story.options} - set(names))
        for name in names:
            values = [_shown(story, name) for story in self.stories]
            if len(set(values)) > 1:
                body.append([name, *values])
        known = {words: [_started(story, key) for story in self.stories] for key, words in _STARTS.items()}
        versions = [_started(story, "versions") or {} for story in self.stories]
        known.update({name: [own.get(name) for own in versions] for name in sorted(set().union(*versions))})
        for words, values in known.items():
            if len(set(values) - {None}) > 1:  # a session of an older version says nothing and contradicts nobody
                body.append([words, *map(_text, values)])
        return ["", *self.letters], body

    def results(self) -> Table:
        """The figures that each has come to, a row for each figure."""
        body = [
            ["epochs completed", *(f"{len(story.epochs):,}" for story in self.stories)],
            ["top-1, last", *(_percent(story.latest("knn_top1")) for story in self.stories)],
            ["top-1, best epoch", *(_percent((_best(story) or {}).get("knn_top1")) for story in self.stories)],
            ["its round and epoch", *(_where(_best(story)) for story in self.stories)],
            ["top-1, recomputed", *(_percent((story.final or {}).get("top1")) for story in self.stories)],
            ["top-5, recomputed", *(_percent((story.final or {}).get("top5")) for story in self.stories)],
            ["consistent pairs, last", *(_percent(_last(story, "consistency")) for story in self.stories)],
            ["anchors, last", *(_number(_last(story, "anchors")) for story in self.stories)],
            ["loss, last", *(_number(_last(story, "loss")) for story in self.stories)],
            ["entropy, last", *(_number(story.latest("entropy")) for story in self.stories)],
            ["kept their neighbour, last", *(_percent(story.latest("neighbours_kept")) for story in self.stories)],
            ["cosine with the nearest, last", *(_number(story.latest("neighbour_cosine")) for story in self.stories)],
            ["clusters, last", *(_clusters(story) for story in self.stories)],
            *self._findings(),
            ["training time", *(_time(story) for story in self.stories)],
        ]
        return ["", *self.letters], [row for row in body if set(row[1:]) != {"-"}]

    def _findings(self) -> list[list[str]]:
        """A row for each figure of the protocols that any session was judged by."""
        found = [story.findings for story in self.stories]
        return [
            [finding_words(key), *(finding_text(key, own[key]) if key in own else "-" for own in found)]
            for key in dict.fromkeys(key for own in found for key in own)
        ]

    def by_round(self) -> dict[str, Table]:
        """A table for each figure that a round comes to."""
        figures = {
            "top-1 at the end of each round": lambda entry: _percent(entry.knn_last),
            "consistent pairs in each round": lambda entry: _percent(entry.consistency),
            "loss at the end of each round": lambda entry: _number(entry.loss),
            "share that kept their neighbour in each round": lambda entry: _percent(entry.last.get("neighbours_kept")),
            "mean entropy at the end of each round": lambda entry: _number(entry.last.get("entropy")),
        }
        rounds = [{entry.number: entry for entry in story.rounds} for story in self.stories]
        numbers = sorted(set().union(*rounds))
        tables = {}
        for title, figure in figures.items():
            body = [[str(n), *(figure(own[n]) if n in own else "-" for own in rounds)] for n in numbers]
            if any(cell != "-" for row in body for cell in row[1:]):
                tables[title] = (["round", *self.letters], body)
        return tables

    def curve(self, place: int, key: str) -> list[tuple[int, float]]:
        """(epochs completed since the run began, figure) of one session, where there is one."""
        story = self.stories[place]
        return [(story.run_epoch(epoch), epoch[key]) for epoch in story.epochs if epoch.get(key) is not None]


def _letter(place: int) -> str:
    """A to Z, then AA, AB ..."""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def _shown(story: Story, name: str) -> str:
    known = {option.name for option in OPTIONS}
    if name not in known and name not in story.options:
        return "-"
    value = in_effect(name, story.value)
    return value_text(float(value) if isinstance(value, Fraction) else value)


def _started(story: Story, key: str) -> Any:
    """What the last start said; None for a session of an older version."""
    return story.starts[-1].get(key) if story.starts else None


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _last(story: Story, key: str) -> Any:
    return story.epochs[-1][key] if story.epochs else None


def _best(story: Story) -> Optional[dict[str, Any]]:
    """The line of the best epoch, the earliest among equals; None if none was evaluated."""
    judged = [epoch for epoch in story.epochs if epoch["knn_top1"] is not None]
    return max(judged, key=lambda epoch: epoch["knn_top1"]) if judged else None


def _where(epoch: Optional[dict[str, Any]]) -> str:
    return "-" if epoch is None else f"{epoch['round']}, {epoch['epoch']}"


def _clusters(story: Story) -> str:
    sizes = story.latest("clusters")
    return _number(len(sizes)) if isinstance(sizes, list) else "-"


def _time(story: Story) -> str:
    return duration(sum(epoch["seconds"] for epoch in story.epochs)) if story.epochs else "-"


def _percent(share: Optional[float]) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
