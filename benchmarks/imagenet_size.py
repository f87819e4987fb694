"""The cost of a run on ImageNet, measured with random unit features."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.memory import peak_beyond
from benchmarks.setting import Setting
from benchmarks.timing import ONCE, Row, seconds
from lib.evaluation.knn import weighted_knn
from lib.method.discovery import discover
from lib.method.objective import and_loss
from lib.search.approximate import ApproximateSearch, recall
from lib.search.exact import nearest

IMAGES, TEST_IMAGES, BATCH, CLASSES = 1_281_167, 50_000, 256, 1000
PART = 8
"""Discovery is timed on an eighth of the rows: its time grows with their square."""

QUERIES = 1000
"""Queries of a timed search: its time grows with their number."""


def loss(setting: Setting) -> list[Row]:
    """Forward and backward over all rows; the plain form would hold some 4 GB. The limit is its two matrix products."""
    memory, features = setting.unit_rows(IMAGES), setting.unit_rows(BATCH, 1)

    def products() -> None:
        for tile in memory.split(2**14):
            (features @ tile.t()) @ tile

    times = setting.turns({"ours": _loss(setting), "limit": products})
    beyond = peak_beyond(_loss, setting, device=setting.device)
    return [Row(f"loss head, N = {IMAGES:,}, B = {BATCH}, fp32", **times, memory=beyond)]


def _loss(setting: Setting) -> Callable[[], object]:
    memory, features = setting.unit_rows(IMAGES), setting.unit_rows(BATCH, 1).requires_grad_()
    members = setting.pairs(IMAGES)[:BATCH].clone()
    return lambda: and_loss(features, memory, members, 0.07).backward()


def exact(setting: Setting) -> list[Row]:
    """Discovery and kNN evaluation with the exact search."""
    rows = IMAGES // PART
    time = seconds(_discovery(setting), setting.synchronise)
    beyond = peak_beyond(_discovery, setting, device=setting.device)
    database, queries = setting.unit_rows(IMAGES), setting.unit_rows(QUERIES, 1)
    labels = torch.randint(CLASSES, (IMAGES,), device=setting.device)
    vote = seconds(
        lambda: weighted_knn(queries, labels[:QUERIES], database, labels, CLASSES, 200, 0.1), setting.synchronise
    )
    return [
        Row(
            f"discovery of all, N = {IMAGES:,}, exact",
            time * PART**2,
            memory=beyond,
            note=f"{time:.1f} s on {rows:,} rows ({ONCE}), times {PART**2}; memory on those",
        ),
        Row(
            f"kNN of {TEST_IMAGES:,} test images, exact, without forwards",
            vote * TEST_IMAGES / QUERIES,
            note=f"{vote:.1f} s for {QUERIES:,} of them ({ONCE}), times {TEST_IMAGES // QUERIES}",
        ),
    ]


def _discovery(setting: Setting) -> Callable[[], object]:
    memory = setting.unit_rows(IMAGES // PART)
    return lambda: discover(memory, 4, 0.25, 1, 0.07)


def approximate(setting: Setting) -> list[Row]:
    """The search by faiss's lists, on rows without structure and on rows around one centre for each class."""
    return [
        *_approximate(setting, "random rows", setting.unit_rows(IMAGES), setting.unit_rows(QUERIES, 1)),
        *_approximate(setting, "rows around 1,000 centres", *_clustered(setting)),
    ]


def _clustered(setting: Setting) -> tuple[Tensor, Tensor]:
    """Rows at a cosine of about 0.7 to one of the centres, and queries of the same kind."""
    centres = setting.unit_rows(CLASSES, 5)
    made = []
    for count, seed in ((IMAGES, 6), (QUERIES, 7)):
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(CLASSES, (count,), generator=generator).to(setting.device)
        made.append(F.normalize(centres[which] + setting.unit_rows(count, seed + 2), dim=1))
    return made[0], made[1]


def _approximate(setting: Setting, kind: str, database: Tensor, queries: Tensor) -> list[Row]:
    built: list[ApproximateSearch] = []
    building = seconds(lambda: built.append(ApproximateSearch(database)))
    search = built[0]
    one, many = (seconds(lambda k=k: search(queries, k), setting.synchronise) for k in (1, 200))
    plain = seconds(lambda: nearest(queries, database, 1), setting.synchronise)
    share = recall(search(queries, 1)[0], nearest(queries, database, 1)[0])
    # the index holds a copy of the rows with their numbers; computed, since faiss does not report it
    size = database.numel() * 4 + len(database) * 8
    return [
        Row(
            f"neighbours of all by lists, {kind}",
            building + one * IMAGES / QUERIES,
            memory=size,
            note=f"recall {100 * share:.1f} %; built in {building:.0f} s, {one:.2f} s for {QUERIES:,} queries (exact "
            f"{plain:.2f} s), scaled to all; {ONCE}; entropies not included; memory computed",
        ),
        Row(
            f"kNN of {TEST_IMAGES:,} test images by lists, {kind}",
            building + many * TEST_IMAGES / QUERIES,
            memory=size,
            note=f"{many:.2f} s for {QUERIES:,} queries ({ONCE}), scaled; built in {building:.0f} s; memory computed",
        ),
    ]
