"""The tables and figures: their variants, what was published, and the statements that are tested."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Optional, Union

from benchmarks.paper.scales import FULL, ROOT, Scale, Variant
from lib.config import Options, collect

BASE = "and"
"""The variant that is the scale's recipe as it stands: anchors over the instances."""
KNN, LINEAR, FEATURES = "knn", "linear", "features"
WHITENED_OUTPUT, BACKBONE, WHITENED_BACKBONE = "embedding, whitened", "backbone, plain", "backbone, whitened"
"""Readings of the networks of `ladder`, beside `KNN`."""
_TWO_SIZES = ("fashion", "cifar-small")
"""Scales whose runs take minutes: neighbourhoods of 1 and 10 there."""
_STEPS = {
    "features": ("bank_init",),
    "cosine": ("lr_policy", "lr_warmup"),
    "augmentation": ("scale", "ratio", "colorjitter", "random_grayscale", "random_horizontal_flip"),
}
"""The options of each step of `ladder`."""
_ADAMW = {"optimizer": "adamw", "base_lr": 0.002}
"""The optimiser of configs/quick.yaml before SGD, which was level or better."""
_PUBLISHED, _QUICK = (
    collect(["--cfgs", *(str(ROOT / "configs" / f"{name}.yaml") for name in names)]).options
    for names in (("base",), ("base", "quick"))
)
_PIXELS, _WHITENED, _UNTRAINED = "pixels", "whitened pixels", "untrained network"


@dataclass(frozen=True)
class Measure:
    """A number of each run of a variant, a share of 1.

    Attributes:
        variant: its name.
        what: `knn`; `features`, kNN on what --features and --whiten ask for; `linear`, on the last stage before the
            output; `consistency R` of a round; `least consistency`; a reading of a network that is read out; or a
            baseline as a run names it. A `Column` may also name `rank`, `views` or `processor`, which are no shares.
    """

    variant: str
    what: str = KNN


@dataclass(frozen=True)
class Statement:
    """`first` is above `second`, which may be a number."""

    text: str
    first: Measure
    second: Union[Measure, float]


@dataclass(frozen=True)
class Row:
    """A line of an item: a number of a variant beside the published one, in %."""

    label: str
    measure: Measure
    published: Optional[float] = None


@dataclass(frozen=True)
class Column:
    """A number of each row's variant; see `Measure.what`."""

    title: str
    what: str
    is_share: bool = True


@dataclass(frozen=True)
class Item:
    """A table or a figure. With `columns` its table has these in place of the rows' own measures."""

    name: str
    title: str
    rows: tuple[Row, ...]
    statements: tuple[Statement, ...]
    note: str = ""
    columns: tuple[Column, ...] = ()


_READINGS = (
    Column("output", KNN),
    Column("output, whitened", WHITENED_OUTPUT),
    Column("backbone", BACKBONE),
    Column("backbone, whitened", WHITENED_BACKBONE),
    Column("RankMe", "rank", is_share=False),
    Column("views", "views", is_share=False),
    Column("processor s", "processor", is_share=False),
)


class Plan:
    """The items of a scale, and the variants that they need, each once.

    Variants with the same options are one, which has the name of the first.
    """

    def __init__(self, scale: Scale):
        self.scale = scale
        self.variants: dict[str, Variant] = {}
        self._by_options: dict[Options, str] = {}
        self.base = self._variant(BASE, protocol=(KNN, LINEAR))
        makers = (
            self._instance, self._table1, self._table2, self._table3, self._table4, self._table5, self._table6,
            self._figure4, self._figure5, self._figure6, self._epochs, self._precision, self._init, self._ladder,
        )  # fmt: skip
        found = {item.name: item for item in (make() for make in makers)}
        self.items = {name: found[name] for name in NAMES}

    def variants_of(self, item: str) -> list[Variant]:
        """The variants of an item, in order, each once."""
        found = self.items[item]
        measures = [row.measure for row in found.rows]
        for statement in found.statements:
            measures += [side for side in (statement.first, statement.second) if isinstance(side, Measure)]
        return [self.variants[name] for name in dict.fromkeys(measure.variant for measure in measures)]

    def _variant(self, name: str, configs: tuple[str, ...] = (), is_read_out: bool = False, **changes: Any) -> str:
        """The name of the variant that has these options."""
        variant = Variant(name, changes, configs, is_read_out)
        options = self.scale.options(variant)
        known = self._by_options.setdefault(options, name)
        self.variants.setdefault(known, variant)
        return known

    def _rounds(self, rounds: int) -> str:
        """R rounds with anchors, a share 1/R more in each; round 0 comes before them."""
        if self.scale.base.max_round == rounds + 1:
            return self.base
        return self._variant(f"rounds-{rounds}", max_round=rounds + 1, ANs_select_rate="auto")

    def _longer(self, factor: Fraction) -> dict[str, Any]:
        return stretched(self.scale.base, factor)

    def _instance_variant(self) -> str:
        changes = {**self._longer(Fraction(self.scale.base.max_round)), "max_round": 1}
        return self._variant("instance", **changes, protocol=(KNN, LINEAR))

    def _instance(self) -> Item:
        instance = self._instance_variant()
        rows = [
            Row("AND", Measure(BASE), 86.3),
            Row("instance learning, one schedule of the rate over all epochs", Measure(instance), 80.8),
        ]
        statements = [Statement("AND over instance learning for as many epochs", Measure(BASE), Measure(instance))]
        if self.scale.name != FULL:
            # 1 anchor in round 1, 2 in round 2 ...: AND's learning-rate schedule and next to nothing else of it
            few = self._variant("instance-restarts", ANs_select_rate=f"{1.001 / self.scale.images:.10f}")
            rows.append(Row("instance learning, the rate restarts as AND's does", Measure(few)))
            text = "AND over instance learning with AND's learning-rate schedule"
            statements.append(Statement(text, Measure(BASE), Measure(few)))
        for name in (_PIXELS, _WHITENED, _UNTRAINED):
            rows.append(Row(name, Measure(BASE, name)))
            statements.append(Statement(f"AND over {name}", Measure(BASE), Measure(BASE, name)))
        if self.scale.base.features != "embedding" or self.scale.base.whiten:
            ours, other = Measure(BASE, FEATURES), Measure(instance, FEATURES)
            named = f"{'whitened ' if self.scale.base.whiten else ''}{self.scale.base.features} features"
            rows += [Row(f"AND, {named}", ours), Row(f"instance learning, {named}", other)]
            statements.append(Statement(f"AND over instance learning, {named}", ours, other))
            statements += [
                Statement(f"AND, {named}, over {name}", ours, Measure(BASE, name)) for name in (_PIXELS, _WHITENED)
            ]
        note = (
            "Ours. As many epochs in all. The rate of instance learning falls once over all of them, in the same "
            "proportions; with restarts it has AND's schedule, and round r has r anchors of all images. The published "
            "80.8 % is in neither of the authors' papers, probably from Super-AND (Han et al., arXiv 2002.12158)."
        )
        return Item("instance", "AND against instance learning", tuple(rows), tuple(statements), note)

    def _table1(self) -> Item:
        title = "Weighted kNN on the output, and a linear classifier on the last convolution"
        if self.scale.name != FULL:
            sets = [("", BASE, self._instance_variant(), (None,) * 4)]
        else:
            longer = {**self._longer(Fraction(self.scale.base.max_round)), "max_round": 1}
            both = {"protocol": (KNN, LINEAR)}
            sets = []
            for name, published in (
                ("cifar10", (74.8, 60.3, 77.6, 70.1)),
                ("cifar100", (41.5, 32.7, 47.9, 39.4)),
                ("svhn", (90.9, 79.8, 93.7, 89.3)),
            ):
                ours = self._variant(f"alexnet-{name}", (name, "alexnet"), **both)
                other = self._variant(f"alexnet-{name}-instance", (name, "alexnet"), **longer, **both)
                sets.append((f"{name}, AlexNet, ", ours, other, published))
        rows, statements = [], []
        for prefix, ours, other, published in sets:
            for what, figures in ((KNN, published[:2]), (LINEAR, published[2:])):
                first, second = Measure(ours, what), Measure(other, what)
                rows += [Row(f"{prefix}AND, {what}", first, figures[0])]
                rows += [Row(f"{prefix}Instance, {what}", second, figures[1])]
                statements.append(Statement(f"{prefix}AND over Instance, {what}", first, second))
        note = "Published beside it, AlexNet, CIFAR-10 / CIFAR-100 / SVHN: DeepCluster 62.3 / 22.7 / 84.9 % kNN and "
        note += "77.9 / 41.9 / 92.0 % linear."
        return Item("table1", title, tuple(rows), tuple(statements), note)

    def _large(self, name: str, title: str, sets: tuple[tuple[str, tuple[str, ...], float], ...], note: str) -> Item:
        """Rows of data sets that are run only where they are, at the paper's scale."""
        rows = []
        for label, configs, published in sets if self.scale.name == FULL else ():
            rows.append(Row(label, Measure(self._variant("-".join(configs), configs)), published))
        return Item(name, title, tuple(rows), (), note)

    def _table2(self) -> Item:
        sets = (("AlexNet", ("imagenet12", "alexnet"), 31.3), ("ResNet18", ("imagenet12",), 41.2))
        note = (
            "Needs ImageNet in data/imagenet12, and --scale paper. Linear on conv1 to conv5: 15.6, 27.0, 35.9, 39.7, "
        )
        note += "37.9 %, fc 36.7 % (published, AlexNet)."
        return self._large("table2", "ImageNet, weighted kNN", sets, note)

    def _table3(self) -> Item:
        sets = (("CUB-200", ("cub200",), 14.4), ("Stanford Dogs", ("dogs",), 32.3))
        note = "Needs CUB-200-2011 in data/cub200 and Stanford Dogs in data/dogs, and --scale paper."
        return self._large("table3", "Fine-grained sets, ResNet18, weighted kNN", sets, note)

    def _table4(self) -> Item:
        base = self.scale.base.network
        if self.scale.name == FULL:
            networks: Mapping[str, Optional[float]] = {"alexnet": 74.8, "resnet18": 86.3, "resnet101": 88.4}
        else:
            networks = dict.fromkeys((base, "resnet18", "resnet34"))
        rows = []
        for network, published in networks.items():
            if network == base:
                name = BASE
            elif network == "alexnet":  # the very run of table 1
                name = self._variant("alexnet-cifar10", ("cifar10", "alexnet"), protocol=(KNN, LINEAR))
            else:
                name = self._variant(network, network=network)
            rows.append(Row(network, Measure(name), published))
        statements = [
            Statement(f"deeper networks are better: {second.label} over {first.label}", second.measure, first.measure)
            for first, second in zip(rows, rows[1:])
        ]
        return Item("table4", "Networks", tuple(rows), tuple(statements))

    def _table5(self) -> Item:
        rounds = self.scale.base.max_round
        random = self._variant("random-start", first_round=1)
        equal = self._variant("random-start-equal", first_round=1, **self._longer(Fraction(rounds, rounds - 1)))
        rows = (
            Row("from Instance (round 0)", Measure(BASE), 86.3),
            Row("from a random network", Measure(random), 85.7),
            Row("from a random network, as many epochs in all", Measure(equal)),
        )
        statements = (
            Statement("the start from Instance over the random start", Measure(BASE), Measure(random)),
            Statement("the same, as many epochs in all", Measure(BASE), Measure(equal)),
        )
        note = "From a random network: rounds 1 to R without round 0, the bank's first rows the untrained features."
        return Item("table5", "What discovery starts from", rows, statements, note)

    def _table6(self) -> Item:
        one_off = self._rounds(1)
        equal = self._variant(
            "rounds-1-equal",
            max_round=2,
            ANs_select_rate="auto",
            **self._longer(Fraction(self.scale.base.max_round, 2)),
        )
        rows = (
            Row("curriculum", Measure(BASE), 86.3),
            Row("one-off", Measure(one_off), 84.2),
            Row("one-off, as many epochs in all", Measure(equal)),
        )
        statements = (
            Statement("the curriculum over one-off discovery", Measure(BASE), Measure(one_off)),
            Statement("the same, as many epochs in all", Measure(BASE), Measure(equal)),
        )
        note = "One-off: all images are anchors in the only round after round 0, which is also R = 1 of figure 5."
        return Item("table6", "One-off discovery against the curriculum", rows, statements, note)

    def _figure4(self) -> Item:
        published = {1: 86.3, 10: 83.0, 50: 79.3, 100: 78.2}
        if self.scale.name in _TWO_SIZES:
            published = {k: published[k] for k in (1, 10)}
        names = {k: BASE if k == self.scale.base.ANs_size else self._variant(f"k-{k}", ANs_size=k) for k in published}
        rows = tuple(Row(f"k = {k}", Measure(names[k]), share) for k, share in published.items())
        statements = tuple(
            Statement(f"one neighbour is best: k = 1 over k = {k}", Measure(names[1]), Measure(names[k]))
            for k in list(published)[1:]
        )
        return Item("figure4", "Neighbourhood size k", rows, statements)

    def _figure5(self) -> Item:
        published = {1: 84.2, 2: 85.3, 4: 86.3, 10: 86.7}
        names = {rounds: self._rounds(rounds) for rounds in published}
        rows = tuple(Row(f"R = {rounds}", Measure(names[rounds]), published[rounds]) for rounds in names)
        pairs = zip(list(names)[:-1], list(names)[1:])
        statements = tuple(
            Statement(
                f"more rounds are better: R = {more} over R = {fewer}", Measure(names[more]), Measure(names[fewer])
            )
            for fewer, more in pairs
        )
        note = "Epochs a round are the same, so more rounds are more epochs, as in the paper."
        return Item("figure5", "Rounds R of the curriculum", rows, statements, note)

    def _figure6(self) -> Item:
        published = (96.1, 93.9, 89.8, 82.5)
        rounds = range(1, self.scale.base.max_round)
        of = {number: Measure(BASE, f"consistency {number}") for number in rounds}
        rows = tuple(Row(f"round {number}", of[number], share) for number, share in zip(rounds, published))
        last = rounds[-1]
        statements = [Statement(f"consistency falls from round 1 to round {last}", of[1], of[last])]
        statements += [
            Statement(f"consistency falls from round {number} to {number + 1}", of[number], of[number + 1])
            for number in rounds[:-1]
        ]
        text = "most neighbourhoods are consistent in every round (consistency stays above 50 %)"
        statements.append(Statement(text, Measure(BASE, "least consistency"), 0.5))
        note = "Consistency: the share of (anchor, neighbour) pairs of one class."
        return Item("figure6", "Consistent neighbourhoods by round", rows, tuple(statements), note)

    def _epochs(self) -> Item:
        published = {Fraction(1, 4): 83.3, Fraction(1, 2): 84.8, Fraction(1): 86.3}
        rows = []
        shares = {Fraction(1, 4): "quarter", Fraction(1, 2): "half"}
        for share, figure in published.items():
            epochs = self._longer(share)["max_epoch"]
            name = BASE if share == 1 else self._variant(f"epochs-{shares[share]}", **self._longer(share))
            rows.append(Row(f"{epochs} epochs a round", Measure(name), figure))
        statements = tuple(
            Statement(f"more epochs are better: {more.label} over {fewer.label}", more.measure, fewer.measure)
            for fewer, more in zip(rows, rows[1:])
        )
        note = "A quarter, a half and all of the scale's epochs, as 50, 100 and 200 in the paper; the learning-rate "
        note += "schedule in proportion."
        return Item("epochs", "Epochs a round", tuple(rows), statements, note)

    def _precision(self) -> Item:
        names = {kind: self._same_or(kind, precision=kind) for kind in ("fp32", "bf16")}
        rows = tuple(Row({"fp32": "float32"}.get(kind, kind), Measure(name)) for kind, name in names.items())
        statement = Statement("float32 over bf16", Measure(names["fp32"]), Measure(names["bf16"]))
        return Item("precision", "What the network computes in", rows, (statement,), "Ours: what bf16 costs.")

    def _init(self) -> Item:
        names = {kind: self._same_or(f"init-{kind}", init=kind) for kind in ("released", "torchvision")}
        rows = tuple(Row(kind, Measure(name)) for kind, name in names.items())
        text = "the released initialisation over torchvision's"
        statement = Statement(text, Measure(names["released"]), Measure(names["torchvision"]))
        return Item("init", "Initialisation of the weights", rows, (statement,), "Ours.")

    def _ladder(self) -> Item:
        title = "From the paper's recipe to the quick one, step by step"
        if self.scale.name == FULL:
            return Item("ladder", title, (), ())

        sources = {"features": _QUICK, "cosine": _QUICK, "augmentation": self.scale.base}

        def variant(name: str, *taken: str, **changes: Any) -> str:
            changes = {"optimizer": _PUBLISHED.optimizer, "base_lr": _PUBLISHED.base_lr, **changes}
            changes.update(features="embedding", whiten=False)
            for step, options in _STEPS.items():
                source = sources[step] if step in taken else _PUBLISHED
                changes.update({option: getattr(source, option) for option in options})
            return self._variant(f"ladder-{name}", is_read_out=True, **changes)

        faithful = variant("faithful")
        features = variant("features", "features")
        optimiser = variant("optimiser", "cosine", **_ADAMW)
        augmentation = variant("augmentation", "augmentation")
        two = variant("features-optimiser", "features", "cosine", **_ADAMW)
        both = variant("features-augmentation", "features", "augmentation")
        quick = variant("features-augmentation-cosine", *_STEPS)
        adamw = variant("adamw", *_STEPS, **_ADAMW)
        rows = [
            Row("faithful", Measure(faithful)),
            Row("bank from features alone", Measure(features)),
            Row("AdamW and cosine alone", Measure(optimiser)),
            Row("the scale's augmentation alone", Measure(augmentation)),
            Row("bank from features + AdamW and cosine", Measure(two)),
            Row("bank from features + the scale's augmentation", Measure(both)),
            Row("+ cosine: the quick recipe", Measure(quick)),
            Row("the same with AdamW", Measure(adamw)),
        ]
        pairs = [(row.label, row.measure.variant, "faithful", faithful) for row in rows[1:4]]
        pairs += [
            (rows[5].label, both, rows[1].label, features),
            (rows[6].label, quick, rows[5].label, both),
            (rows[7].label, adamw, "the quick recipe", quick),
        ]
        statements = []
        for what, reading in ((KNN, "output"), (WHITENED_BACKBONE, "whitened backbone")):
            statements += [
                Statement(f"{label}, over {other}: {reading}", Measure(first, what), Measure(second, what))
                for label, first, other, second in pairs
            ]
        statements += [
            Statement(f"{label}: whitened backbone over output", Measure(name, WHITENED_BACKBONE), Measure(name))
            for label, name in ((rows[0].label, faithful), ("the quick recipe", quick))
        ]
        text = "the quick recipe's whitened backbone over faithful's output"
        statements.append(Statement(text, Measure(quick, WHITENED_BACKBONE), Measure(faithful)))
        note = (
            "Ours. Faithful: the bank, optimiser and augmentation of configs/base.yaml with the scale's network and "
            "epochs, the learning-rate schedule in proportion. Cosine: as in configs/quick.yaml. AdamW at 0.002 "
            "takes the place of SGD. All have as many views of an image; processor seconds, evaluation "
            "included, stand beside them."
        )
        return Item("ladder", title, tuple(rows), tuple(statements), note, _READINGS)

    def _same_or(self, name: str, **change: Any) -> str:
        """The base variant if it has this option already."""
        ((option, value),) = change.items()
        return BASE if getattr(self.scale.base, option) == value else self._variant(name, **change)


NAMES = (
    "table1", "table2", "table3", "table4", "table5", "table6", "figure4", "figure5", "epochs", "figure6",
    "instance", "precision", "init", "ladder",
)  # fmt: skip


def stretched(options: Options, factor: Fraction) -> dict[str, int]:
    """`max_epoch`, and the epochs at which the learning rate falls, times a factor; whole epochs, at least 1."""

    def times(epochs: int) -> int:
        return max(1, int(epochs * factor + Fraction(1, 2)))

    changed = {"max_epoch": times(options.max_epoch)}
    if options.lr_policy == "step":
        changed["lr_decay_offset"], changed["lr_decay_step"] = (
            times(options.lr_decay_offset),
            times(options.lr_decay_step),
        )
    return changed
