"""The rounds in the report: figures and pictures from the checkpoint of each, and neighbour quality by round."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from markupsafe import Markup
from torch import Tensor
from torchvision import transforms

import models
from datasets.image_set import ImageSet
from datasets.transforms.pil import test_transform
from lib.checkpoint import io as checkpoint
from lib.errors import UserError, not_none
from lib.figures.attention import attention, overlaid
from lib.figures.charts import Curve, bars, curves
from lib.method.neighbourhoods import Neighbourhoods
from lib.report.pictures import Pictures, uri_of
from lib.search.exact import nearest
from lib.session.metrics import Round
from lib.session.records import SessionRecord

ATTENTION_SIDE = 80
"""Pixels of an attention map's side."""
PAIRS = 2**14
"""The most anchors on which mean cosine and stability are measured, evenly spaced."""


@dataclass(frozen=True)
class RoundView:
    """What the report shows of a round from its checkpoint.

    Attributes:
        number: of the round.
        found: its anchors and neighbours.
        cosine: mean cosine of anchors with their neighbours in the bank; None without anchors.
        attention_maps: data URIs of the watched images' attention maps.
        stage: the stage of the network whose activations the attention maps weight.
    """

    number: int
    found: Neighbourhoods
    cosine: Optional[float]
    attention_maps: tuple[str, ...]
    stage: str


def view(saved: dict[str, Any], images: ImageSet, watched: Sequence[int]) -> RoundView:
    """The view of the round of a checkpoint.

    Args:
        images: the training images.
        watched: the rows whose attention is drawn.
    """
    memory = saved["npc"]["memory"].float()
    found = Neighbourhoods(**saved["ANs_discovery"])
    stage, maps = _attention_maps(saved, memory, images, watched)
    return RoundView(saved["round"], found, _mean_cosine(memory, found), maps, stage)


def checked(path: Path, images: ImageSet, fingerprint: str) -> dict[str, Any]:
    """The checkpoint at `path`.

    Raises:
        UserError: it is damaged, or belongs to other images.
    """
    saved = checkpoint.load(path)
    rows, data = len(saved["npc"]["memory"]), saved.get("dataset", {})
    other = rows != len(images) or data.get("fingerprint", fingerprint) != fingerprint
    if other or images.replaced(data.get("contents")).are_other_pictures:
        raise UserError(
            f"checkpoint {path} belongs to {rows} other training images than the {len(images)} that are here; "
            "for its report use the --dataset, --data-root, --limit-train and --seed it was made with"
        )
    return saved


def stability(before: Neighbourhoods, after: Neighbourhoods) -> Optional[float]:
    """Of the images that are anchors in both rounds, the mean share of neighbours they keep; None if there are none."""
    both = torch.nonzero((before.position >= 0) & (after.position >= 0)).flatten()
    if len(both) == 0:
        return None
    both = _thinned(both)
    old, new = before.neighbours[before.position[both]], after.neighbours[after.position[both]]  # (A, K), (A, L)
    kept = (new[:, :, None] == old[:, None, :]).any(dim=2)
    return kept.double().mean().item()


def _mean_cosine(memory: Tensor, found: Neighbourhoods) -> Optional[float]:
    if len(found.anchor_indexes) == 0:
        return None
    chosen = _thinned(torch.arange(len(found.anchor_indexes)))
    anchors, neighbours = memory[found.anchor_indexes[chosen]], found.neighbours[chosen]
    total = sum((anchors * memory[column]).sum(dim=1).double().mean().item() for column in neighbours.t())
    return total / neighbours.shape[1]


def _thinned(rows: Tensor) -> Tensor:
    return rows if len(rows) <= PAIRS else rows[torch.linspace(0, len(rows) - 1, PAIRS).long()]


def _attention_maps(
    saved: dict[str, Any], memory: Tensor, images: ImageSet, watched: Sequence[int]
) -> tuple[str, tuple[str, ...]]:
    """The stage, and an attention map of each watched image for its similarity to the nearest other row of the bank."""
    options, data = saved["options"], saved["dataset"]
    size = options["size"]
    with torch.random.fork_rng(devices=[]):  # building a network draws random numbers, which must not change the run
        network = models.build(options["network"], options["low_dim"], options["stem"], size)
    network.load_state_dict(saved["net"])
    steps = test_transform(size, options["resize"] or size, data["means"], data["stds"]).transforms
    squares = [transforms.Compose(steps[:2])(images.read(index)) for index in watched]
    rows = torch.tensor(watched)
    _, neighbours = nearest(memory[rows], memory, 1, rows)
    batch = torch.stack([transforms.Compose(steps[2:])(square) for square in squares])
    seen = attention(network, batch, memory[neighbours[:, 0]])
    return seen.stage, tuple(
        uri_of(overlaid(square, attended.numpy(), ATTENTION_SIDE)) for square, attended in zip(squares, seen.maps)
    )


@dataclass(frozen=True)
class RoundQuality:
    """The neighbourhoods of a round in numbers; None where one was not measured.

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
    """The values that the template shows.

    Attributes:
        rounds: in order.
        of_all: whether `kept` and `cosine` are of all images, from metrics.jsonl; otherwise they are of the anchors.
        labels: whether pairs are compared by labels.
        without_labels: whether there are pairs without both labels.
        bars: consistent and inconsistent pairs, or None.
        charts: caption and figure of each measure that needs no labels.
    """

    rounds: list[RoundQuality]
    of_all: bool
    labels: bool
    without_labels: bool
    bars: Optional[Markup]
    charts: list[tuple[str, Markup]]


def quality(record: SessionRecord, views: Sequence[RoundView], pictures: Pictures) -> Quality:
    """The quality of the neighbourhoods by round, from metrics.jsonl and the checkpoints."""
    entries, k = record.rounds, record.value("ANs_size")
    of_all = any(entry.neighbour_cosine is not None for entry in entries)
    by_number = {each.number: each for each in views}
    rounds = []
    for entry in entries:
        now, before = by_number.get(entry.round), by_number.get(entry.round - 1)
        if of_all:
            kept, cosine = entry.neighbours_kept, entry.neighbour_cosine
        else:
            kept = None if now is None or before is None else stability(before.found, now.found)
            cosine = None if now is None else now.cosine
        equal = _pairs_of_round(entry, k, now, pictures)
        rounds.append(RoundQuality(entry.round, entry.anchors * k, *equal, kept, cosine, entry.entropy))
    counted = [
        (each, each.consistent, each.inconsistent)
        for each in rounds
        if each.consistent is not None and each.inconsistent is not None
    ]
    without_labels = any(same + other < each.pairs for each, same, other in counted)
    return Quality(rounds, of_all, bool(counted), without_labels, _bars(counted), _charts(rounds))


def pairs_by_label(found: Neighbourhoods, pictures: Pictures) -> tuple[int, int]:
    """How many pairs have equal labels and how many different ones; pairs without both labels are in neither."""
    labels = not_none(pictures.labels)
    own, others = labels[found.anchor_indexes.numpy()][:, None], labels[found.neighbours.numpy()]
    known = (own >= 0) & (others >= 0)
    return int(((own == others) & known).sum()), int(((own != others) & known).sum())


def _pairs_of_round(
    entry: Round, k: int, now: Optional[RoundView], pictures: Pictures
) -> tuple[Optional[int], Optional[int]]:
    """Pairs with equal labels, and with different ones; None where that is not known."""
    if entry.consistency is None:
        return None, None
    if now is not None and pictures.labelled:
        return pairs_by_label(now.found, pictures)
    # consistency is a share of the labelled pairs, whose number only the checkpoint has
    if pictures.labelled and (not_none(pictures.labels) < 0).any():
        return None, None
    pairs = entry.anchors * k
    consistent = round(entry.consistency * pairs)
    return consistent, pairs - consistent


def _bars(counted: Sequence[tuple[RoundQuality, int, int]]) -> Optional[Markup]:
    if not counted:
        return None
    words = "; ".join(f"round {each.number}: {same} and {other}" for each, same, other in counted)
    return bars(
        "pairs-by-round",
        f"Consistent and inconsistent pairs by round. {words}",
        "round",
        "pairs",
        [str(each.number) for each, _, _ in counted],
        [same for _, same, _ in counted],
        [other for _, _, other in counted],
    )


def _charts(rounds: Sequence[RoundQuality]) -> list[tuple[str, Markup]]:
    """The charts that have at least two points; the table shows a single one."""
    charts = []
    for key, caption, up in (
        ("kept", "Neighbours kept from the round before", "share kept"),
        ("cosine", "Mean cosine with the nearest neighbour", "cosine"),
        ("entropy", "Mean entropy", "nats"),
    ):
        line = Curve(caption, [each.number for each in rounds], [getattr(each, key) for each in rounds])
        if len(line.points) > 1:
            described = f"{caption}. " + ", ".join(f"round {x}: {y:.3f}" for x, y in line.points)
            charts.append((caption, not_none(curves(key, described, "round", up, [line], percent=key == "kept"))))
    return charts
