"""How good the neighbourhoods were, round by round: by the labels, and by what needs none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from markupsafe import Markup

from lib.figures.charts import Curve, bars, curves
from lib.method.neighbourhoods import Neighbourhoods
from lib.report.pictures import Pictures
from lib.report.round_view import RoundView, stability
from lib.session.story import RoundStory, Story


@dataclass(frozen=True)
class RoundQuality:
    """One round; None where something was not measured.

    Attributes:
        number: of the round.
        pairs: (anchor, neighbour) pairs.
        consistent, inconsistent: those with equal labels, and with different ones.
        kept: share of nearest neighbours that are those of the round before.
        cosine: mean cosine with the nearest neighbour.
        entropy: mean entropy in nats.
    """

    number: int
    pairs: int
    consistent: Optional[int]
    inconsistent: Optional[int]
    kept: Optional[float]
    cosine: Optional[float]
    entropy: Optional[float]


@dataclass(frozen=True)
class Quality:
    """Everything the template needs.

    Attributes:
        rounds: in order.
        of_all: `kept` and `cosine` are of all images, as metrics.jsonl has them; otherwise of the anchors.
        labels: whether pairs are judged by labels.
        unjudged: whether there are pairs that could not be, for want of a label.
        bars: consistent and inconsistent pairs, or None.
        charts: caption and figure of what needs no labels.
    """

    rounds: list[RoundQuality]
    of_all: bool
    labels: bool
    unjudged: bool
    bars: Optional[Markup]
    charts: list[tuple[str, Markup]]


def quality(story: Story, views: Sequence[RoundView], pictures: Pictures) -> Quality:
    """From metrics.jsonl, and from what the checkpoints of the rounds hold beside."""
    of_all = any(entry.latest("neighbour_cosine") is not None for entry in story.rounds)
    by_number = {each.number: each for each in views}
    rounds = []
    for entry in story.rounds:
        now, before = by_number.get(entry.number), by_number.get(entry.number - 1)
        if of_all:
            kept, cosine = entry.latest("neighbours_kept"), entry.latest("neighbour_cosine")
        else:
            kept = None if now is None or before is None else stability(before.found, now.found)
            cosine = None if now is None else now.closeness
        equal = _judged(entry, now, pictures)
        rounds.append(RoundQuality(entry.number, entry.pairs, *equal, kept, cosine, entry.latest("entropy")))
    judged = [each for each in rounds if each.consistent is not None]
    unjudged = any(each.consistent + each.inconsistent < each.pairs for each in judged)
    return Quality(rounds, of_all, bool(judged), unjudged, _bars(judged), _charts(rounds))


def pairs_by_label(found: Neighbourhoods, pictures: Pictures) -> tuple[int, int]:
    """How many pairs have equal labels and how many different ones; pairs without both labels are in neither."""
    labels = pictures.labels
    own, others = labels[found.anchor_indexes.numpy()][:, None], labels[found.neighbours.numpy()]
    known = (own >= 0) & (others >= 0)
    return int(((own == others) & known).sum()), int(((own != others) & known).sum())


def _judged(entry: RoundStory, now: Optional[RoundView], pictures: Pictures) -> tuple[Optional[int], Optional[int]]:
    if entry.consistency is None:
        return None, None
    if now is not None and pictures.labelled:
        return pairs_by_label(now.found, pictures)
    if pictures.labelled and (pictures.labels < 0).any():  # how many pairs the share is of, the checkpoint knew
        return None, None
    return entry.consistent, entry.pairs - entry.consistent


def _bars(judged: Sequence[RoundQuality]) -> Optional[Markup]:
    if not judged:
        return None
    words = "; ".join(f"round {each.number}: {each.consistent} and {each.inconsistent}" for each in judged)
    return bars(
        "pairs-by-round",
        f"Consistent and inconsistent pairs by round. {words}",
        "round",
        "pairs",
        [str(each.number) for each in judged],
        [each.consistent for each in judged],
        [each.inconsistent for each in judged],
    )


def _charts(rounds: Sequence[RoundQuality]) -> list[tuple[str, Markup]]:
    """Those with two points at least: one is said by the table."""
    charts = []
    for key, caption, up in (
        ("kept", "Neighbours kept from the round before", "share kept"),
        ("cosine", "Mean cosine with the nearest neighbour", "cosine"),
        ("entropy", "Mean entropy", "nats"),
    ):
        line = Curve(caption, [each.number for each in rounds], [getattr(each, key) for each in rounds])
        if len(line.points) > 1:
            described = f"{caption}. " + ", ".join(f"round {x}: {y:.3f}" for x, y in line.points)
            charts.append((caption, curves(key, described, "round", up, [line], percent=key == "kept")))
    return charts
