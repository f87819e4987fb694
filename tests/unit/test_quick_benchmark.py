"""Benchmarks at a budget: what they store, run again and show, without training."""

import argparse
import logging

import pytest

from benchmarks import contender, quick, runs
from benchmarks.runs import Cell, Store


def record(cell, k20=50.0, k200=60.0, **more):
    accuracies = {"backbone": {"plain": {"20": 1.0, "200": 2.0}, "whitened": {"20": k20, "200": k200}}}
    return {
        "data": cell.data, "variant": cell.variant, "seconds": cell.seconds, "views": cell.views, "seed": cell.seed,
        "rate": cell.rate, "accuracies": accuracies, "train_seconds": 119.6, "views_done": 12.34, "load": [0.5, 2.25],
        "threads": 1, "commit": "abc", "torch": "2", "date": "2026-11-25", "machine": "m", **more,
    }  # fmt: skip


def asked(tmp_path, **more):
    given = {"seeds": 1, "first_seed": 0, "data": ["digits"], "minutes": [5], "variants": ["quick"], "threads": 1,
             "rates": [0.1, 0.2], "report": tmp_path / "quick.json", "dry_run": False, "data_root": None}  # fmt: skip
    return argparse.Namespace(**{**given, **more})


def test_results_are_read_back_and_a_new_one_replaces_the_old(tmp_path):
    store = Store(tmp_path / "r.json")
    one, other = Cell("digits", "quick", 120, None, 0), Cell("digits", "simclr", None, 50.0, 1, 0.06)
    store.add(record(one, 10.0))
    store.add(record(other))
    store.add(record(one, 20.0))
    again = Store(tmp_path / "r.json")
    assert list(again.results) == [one, other]
    assert runs.top1(again.results[one], "backbone", "whitened", 20) == 20.0
    assert runs.top1(again.results[one], "embedding", "plain", 20) is None
    assert runs.best(again.results[one]) == 60.0


def test_two_calls_that_add_to_one_file_keep_each_others_runs(tmp_path):
    cells = [Cell("digits", "quick", 120, None, seed) for seed in (0, 1)]
    stores = [Store(tmp_path / "r.json") for _ in cells]
    for store, cell in zip(stores, cells):
        store.add(record(cell))
    assert list(stores[1].results) == list(Store(tmp_path / "r.json").results) == cells
    assert list(tmp_path.iterdir()) == [tmp_path / "r.json"]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "r.json").write_text('{"runs": [{"data": 1}]}')
    with pytest.raises(SystemExit, match="r.json: not what a benchmark keeps there"):
        Store(tmp_path / "r.json")


def test_the_interval_by_hand():
    # t(0.975, 1) = 12.706 times the standard error of 60 and 62, which is 1; t(0.975, 2) = 4.303 times 1 / sqrt(3)
    assert runs.half_width([60.0, 62.0]) == " ± 12.7"
    assert runs.half_width([1.0, 2.0, 3.0]) == " ± 2.5"
    assert runs.half_width([1.0]) == ""


def test_the_table_shows_means_and_the_best_rate(tmp_path):
    store = Store(tmp_path / "r.json")
    for seed, k200 in ((0, 60.0), (1, 62.0)):
        store.add(record(Cell("digits", "quick", 120, None, seed), 50.0, k200))
    store.add(record(Cell("digits", "simclr", 120, None, 0, 0.03), 40.0, 41.0))
    store.add(record(Cell("digits", "simclr", 120, None, 0, 0.06), 44.0, 43.0))
    store.add(record(Cell("digits", "pixels", 0, None, 0), accuracies={"pixels": {"plain": {"20": 9, "200": 8}}}))
    lines = runs.report(store, "Title").splitlines()
    assert lines[0] == "# Title"
    assert "### 2 minutes" in lines and "### without training" in lines  # noqa: PT018
    shown = [line.split(" | ") for line in lines if line.startswith("| AND") or line.startswith("| SimCLR")]
    assert shown[0][1:4] == ["2", "120", "12.3"]
    assert shown[0][-1] == "50.0 ± 0.0 / 61.0 ± 12.7 |"
    assert shown[1][0] == "| SimCLR (lightly), rate 0.06 of 0.03, 0.06"
    assert shown[1][-1] == "44.0 / 43.0 |"
    assert any(line.startswith("| pixels, centred; whitened") and "9.0 / 8.0" in line for line in lines)


def test_seconds_are_marked_by_machine(tmp_path):
    store = Store(tmp_path / "r.json")
    for seed, machine in enumerate(("B", "A")):
        store.add({**record(Cell("digits", "instance" if seed else "quick", 120, None, seed)), "machine": machine})
    other = Cell("digits", "quick", 120, None, 1)
    store.add({**record(other), "machine": "A", "train_seconds": 300.0})
    lines = runs.report(store, "Title").splitlines()
    assert any(line.startswith("- machine: A [1]; B [2]; threads") for line in lines)
    assert any(line.startswith("| AND, configs/quick.yaml | 2 | 300 [1], 120 [2] |") for line in lines)
    assert any(line.startswith("| AND, configs/quick.yaml, round 0 alone | 1 | 120 [1] |") for line in lines)


def test_rates_are_tried_in_short_runs_and_the_best_is_used(tmp_path):
    given, store = asked(tmp_path, variants=["simclr", "pixels"], seeds=2), Store(tmp_path / "quick.json")
    trials = [Cell("digits", "simclr", 120, None, 0, rate) for rate in (0.1, 0.2)]
    pixels = [Cell("digits", "pixels", 0, None, seed) for seed in (0, 1)]
    assert set(quick.cells(given, store)) == {*trials, *pixels}
    for trial, k200 in zip(trials, (61.0, 62.0)):
        store.add(record(trial, k200=k200))
    chosen = [Cell("digits", "simclr", 300, None, seed, 0.2) for seed in (0, 1)]
    assert set(quick.cells(given, store)) == {*trials, *pixels, *chosen}


def test_only_missing_cells_run_and_a_failure_stops_no_others(tmp_path, monkeypatch, capsys):
    given = asked(tmp_path, variants=["quick", "paper", "instance"])
    done = []

    def run(cell, given):
        done.append(cell.variant)
        return None if cell.variant == "paper" else record(cell)

    monkeypatch.setattr(runs, "_run", run)
    Store(given.report).add(record(Cell("digits", "quick", 300, None, 0)))
    given.dry_run = True
    assert runs.work(given, lambda store: quick.cells(given, store), "T") == 0
    assert "2 runs missing, about 0.2 hours" in capsys.readouterr().out
    assert done == []
    given.dry_run = False
    assert runs.work(given, lambda store: quick.cells(given, store), "T") == 1
    assert done == ["paper", "instance"]
    assert "failed: digits, paper, 300 s, seed 0" in capsys.readouterr().err
    assert "round 0 alone" in given.report.with_suffix(".md").read_text()


def test_ctrl_c_keeps_finished_runs(tmp_path, monkeypatch, capsys):
    given = asked(tmp_path, variants=["quick", "instance"])

    def run(cell, given):
        if cell.variant == "instance":
            raise KeyboardInterrupt
        return record(cell)

    monkeypatch.setattr(runs, "_run", run)
    with pytest.raises(SystemExit) as stop:
        runs.exit_with(lambda: runs.work(given, lambda store: quick.cells(given, store), "T"))
    assert stop.value.code == 130
    assert "finished runs are kept" in capsys.readouterr().err
    assert [cell.variant for cell in Store(given.report).results] == ["quick"]


def test_epochs_that_fit_by_hand():
    assert contender.rounds_within(600, 5, 5) == (5, 24)
    assert contender.rounds_within(600, 5, 1) == (1, 120)
    assert contender.rounds_within(600, 250, 5) == (2, 1)  # fewer epochs than rounds
    assert contender.rounds_within(1, 250, 5) == (1, 1)


def test_the_papers_schedule_keeps_its_proportions():
    # of 200 epochs: offset 80 and steps of 40, so that the rate falls at 120 and 160
    assert contender.paper_schedule(200) == ["--lr-decay-offset", "80", "--lr-decay-step", "40"]
    assert contender.paper_schedule(10) == ["--lr-decay-offset", "4", "--lr-decay-step", "2"]
    for epochs in range(1, 300):  # a third fall would come at 200 of 200, and never comes
        offset, step = (int(value) for value in contender.paper_schedule(epochs)[1::2])
        assert [offset + step, offset + 2 * step] == pytest.approx([0.6 * epochs, 0.8 * epochs], abs=1.41)
        assert offset + 3 * step >= epochs
    assert contender.paper_schedule(1) == ["--lr-decay-offset", "0", "--lr-decay-step", "1"]


def test_training_seconds_start_at_the_line_before_the_first_epoch():
    stamps = contender._Stamps()
    stamps.lines = [("data", 1.0), ("baselines kNN", 4.0), ("round 0/1 epoch 1/1  loss 9", 5.0),
                    ("round 0 epoch 1/1  loss 8", 6.0), ("round 1: 2 anchors", 7.0),
                    ("round 1/1 epoch 1/1  loss 7", 8.0), ("round 1 epoch 1/1  loss 6", 9.5)]  # fmt: skip
    assert stamps.epochs == [2.0, 5.5]
    assert stamps.filter(logging.makeLogRecord({"msg": "round %d epoch %d/%d", "args": (1, 2, 3)})) is True
    assert len(stamps.epochs) == 3
    stamps.lines = [("data", 1.0)]
    with pytest.raises(RuntimeError):
        _ = stamps.epochs
