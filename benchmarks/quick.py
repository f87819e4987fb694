"""Accuracy of AND's quick recipe within minutes, beside pixels, the paper's recipe, SimCLR and BYOL.

    python3 -m benchmarks.quick --data-root CIFAR                       # everything, some days of one core
    python3 -m benchmarks.quick --minutes 2 --data digits --variants quick pixels
    python3 -m benchmarks.quick --dry-run                               # what is missing

The results are stored in benchmarks/reports/quick.json, and quick.md is written from them. Stored runs are not
repeated.
"""

import argparse
from collections.abc import Iterator

from benchmarks import runs
from benchmarks.runs import Cell, Store

DATA = ("cifar-small", "cifar", "fashion", "digits")
STILL, RIVALS = ("pixels", "untrained"), ("simclr", "byol", "simclr-whitenet")
VARIANTS = (*STILL, "quick", "simclr", "byol", "simclr-whitenet", "instance", "paper")
TRIAL = 2
"""Most minutes of a run that chooses a rival's learning rate; fewer if the shortest budget has fewer."""


def cells(given: argparse.Namespace, store: Store) -> Iterator[Cell]:
    """The requested runs, as far as the results so far determine them."""
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for data in given.data:
            for variant in given.variants:
                if variant in STILL:
                    yield Cell(data, variant, 0, None, seed)
            for minutes in given.minutes:
                for variant in given.variants:
                    if variant in RIVALS:
                        yield from _of_rival(given, store, Cell(data, variant, 60 * minutes, None, seed))
                    elif variant not in STILL:
                        yield Cell(data, variant, 60 * minutes, None, seed)


def _of_rival(given: argparse.Namespace, store: Store, wanted: Cell) -> Iterator[Cell]:
    """A short run at each learning rate, then the wanted run at the best rate."""
    budget = 60 * min(TRIAL, *given.minutes)
    trials = [Cell(wanted.data, wanted.variant, budget, None, 0, rate) for rate in given.rates]
    yield from trials
    if all(trial in store.results for trial in trials):
        rate = runs.best_rate(store.results[trial] for trial in trials)
        yield Cell(wanted.data, wanted.variant, wanted.seconds, None, wanted.seed, rate)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.quick", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", nargs="+", type=float, default=[2, 5, 10, 30], help="budgets")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.03, 0.06, 0.12], help="of the rivals")
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow it (default: 0)")
    runs.add_arguments(parser, "quick")
    given = parser.parse_args()
    if {"cifar", "cifar-small"} & set(given.data) and given.data_root is None and not given.dry_run:
        parser.error("--data-root: a folder with CIFAR-10's train/ and test/ is needed, or --data fashion digits")
    return runs.work(given, lambda store: cells(given, store), "Features within minutes")


if __name__ == "__main__":
    runs.exit_with(main)
