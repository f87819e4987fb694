"""The paper's tables as commands: statistics, variants, verdicts and reports, without a run."""

import json
import math
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.paper import __main__ as command
from benchmarks.paper.items import BASE, NAMES, Measure, Plan, Statement, stretched
from benchmarks.paper.report import as_json, assess, earlier, markdown, measured, write
from benchmarks.paper.runs import BEGUN, FINISHED, MISSING, NO_DATA, Call, Result, Run
from benchmarks.paper.scales import FULL, ROOT, Scale, Variant
from benchmarks.paper.scales import NAMES as SCALES
from benchmarks.paper.statistics import HOLDS, OPPOSITE, UNDECIDED, Mean, mean_of, paired, verdict
from lib.config import collect, to_yaml
from lib.errors import UserError

DIGITS = Plan(Scale.of("digits"))


# Statistics


def test_a_mean_and_its_interval_by_hand():
    found = mean_of([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    half = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2 degrees of freedom), s = 1
    assert found.interval == pytest.approx((2 - half, 2 + half))
    assert mean_of([]) is None
    assert mean_of([0.5]) == Mean(0.5, None, 1)


def test_the_interval_is_scipys():
    values = [0.97, 0.975, 0.981, 0.969, 0.99]
    assert mean_of(values).interval == pytest.approx(
        stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    )


def test_differences_are_paired_by_seed():
    first, second = {0: 0.9, 1: 0.8, 2: 0.95, 7: 0.1}, {2: 0.90, 0: 0.88, 1: 0.77, 3: 0.5}
    found = paired(first, second)  # 0.02, 0.03, 0.05
    assert (found.mean, found.n) == (pytest.approx(0.1 / 3), 3)
    test = stats.ttest_rel([0.9, 0.8, 0.95], [0.88, 0.77, 0.90])
    assert found.mean / (found.interval[1] - found.mean) * stats.t.ppf(0.975, 2) == pytest.approx(test.statistic)
    assert paired(first, {9: 0.5}) is None


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.02, 0.03, 0.04], HOLDS),
        ([-0.02, -0.03, -0.04], OPPOSITE),
        ([0.02, -0.01, 0.04], UNDECIDED),
        ([0.02, 0.02, 0.02], HOLDS),
        ([0.0, 0.0, 0.0], UNDECIDED),
        ([0.02, 0.02], UNDECIDED),  # two equal differences have an interval of no width
        ([0.5], UNDECIDED),
        ([], UNDECIDED),
    ],
)
def test_verdicts(differences, expected):
    assert verdict(mean_of(differences)) == expected


# Scales and items


@pytest.mark.parametrize("name", SCALES)
def test_each_scale_has_a_recipe_with_a_reason_beside_each_value(name):
    scale = Scale.of(name)
    assert {item.name for item in Plan(scale).items.values()} == set(NAMES)
    for line in scale.file.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "dataset:")):
            assert "  # " in line, line


def test_the_scale_of_the_paper_is_its_recipe():
    plan = Plan(Scale.of(FULL))
    published = collect(["--cfgs", str(ROOT / "configs/base.yaml"), str(ROOT / "configs/cifar10.yaml")]).options
    ours = {**plan.scale.base.as_dict(), "ANs_select_rate": 0.25}
    assert ours == published.as_dict()
    assert plan.scale.base.select_rate == 0.25
    networks = {row.label: (row.measure.variant, row.published) for row in plan.items["table4"].rows}
    assert networks == {
        "alexnet": ("alexnet-cifar10", 74.8),
        "resnet18": (BASE, 86.3),
        "resnet101": ("resnet101", 88.4),
    }
    instance = plan.scale.options(plan.variants["instance"])
    assert (instance.max_round, instance.max_epoch, instance.lr_decay_offset, instance.lr_decay_step) == (
        1,
        1000,
        400,
        200,
    )


def test_items_share_their_variants():
    assert [variant.name for variant in DIGITS.variants_of("table6")] == ["and", "rounds-1", "rounds-1-equal"]
    assert [variant.name for variant in DIGITS.variants_of("figure5")] == ["rounds-1", "rounds-2", "and", "rounds-10"]
    assert [variant.name for variant in DIGITS.variants_of("precision")] == ["and", "bf16"]
    assert len({DIGITS.scale.options(variant) for variant in DIGITS.variants.values()}) == len(DIGITS.variants)


@pytest.mark.parametrize(
    ("variant", "epochs"),
    [("and", 40), ("instance", 40), ("instance-restarts", 40), ("random-start-equal", 40), ("rounds-1-equal", 40),
     ("rounds-1", 16), ("random-start", 32), ("rounds-10", 88), ("epochs-quarter", 10), ("epochs-half", 20)],
)  # fmt: skip
def test_epochs_of_the_variants(variant, epochs, tmp_path):
    assert Run(DIGITS.scale, DIGITS.variants[variant], 0, Call(tmp_path)).epochs == epochs


def test_instance_restarts_have_the_fewest_possible_anchors():
    from lib.method.discovery import anchor_count

    options = DIGITS.scale.options(DIGITS.variants["instance-restarts"])
    counts = [anchor_count(number, 1437, options.select_rate) for number in range(1, options.max_round)]
    assert counts == [1, 2, 3, 4]


def test_the_learning_rate_schedule_scales_with_the_epochs():
    options = collect(["--max-epoch", "200", "--lr-decay-offset", "80", "--lr-decay-step", "40"]).options
    assert stretched(options, 5) == {"max_epoch": 1000, "lr_decay_offset": 400, "lr_decay_step": 200}
    assert stretched(collect(["--lr-policy", "cosine"]).options, 2) == {"max_epoch": 400}


def test_every_item_has_its_statements():
    texts = {name: [statement.text for statement in item.statements] for name, item in DIGITS.items.items()}
    assert {name for name, found in texts.items() if not found} == {"table2", "table3"}
    assert texts["figure6"][0] == "consistency falls from round 1 to round 4"
    assert len(texts["figure4"]) == len(texts["figure5"]) == 3


def test_the_ladder_goes_from_the_papers_recipe_to_the_quick_one_at_equal_views():
    plan = Plan(Scale.of("cifar-small"))
    variants = {variant.name: plan.scale.options(variant) for variant in plan.variants_of("ladder")}
    assert {options.max_round * options.max_epoch for options in variants.values()} == {50}
    published, quick = (
        collect(["--cfgs", *(str(ROOT / "configs" / f"{name}.yaml") for name in names)]).options
        for names in (("base",), ("base", "quick"))
    )
    names = ["optimizer", "base_lr", "momentum", "weight_decay", "lr_policy", "lr_warmup", "bank_init"]
    names += ["scale", "colorjitter", "random_grayscale", "random_horizontal_flip"]
    for variant, recipe in (("ladder-faithful", published), ("ladder-features-augmentation-cosine", quick)):
        assert [getattr(variants[variant], name) for name in names] == [getattr(recipe, name) for name in names]
    assert (variants["ladder-faithful"].lr_decay_offset, variants["ladder-faithful"].lr_decay_step) == (4, 2)
    differing = {
        variant: {name for name in names if getattr(options, name) != getattr(published, name)}
        for variant, options in variants.items()
    }
    optimiser, jitter = (
        {"optimizer", "base_lr", "lr_policy", "lr_warmup"},
        {"scale", "colorjitter", "random_horizontal_flip"},
    )
    assert differing == {
        "ladder-faithful": set(), "ladder-features": {"bank_init"}, "ladder-optimiser": optimiser,
        "ladder-augmentation": jitter, "ladder-features-optimiser": {"bank_init"} | optimiser,
        "ladder-features-augmentation": {"bank_init"} | jitter,
        "ladder-features-augmentation-cosine": {"bank_init", "lr_policy", "lr_warmup"} | jitter,
        "ladder-adamw": {"bank_init"} | optimiser | jitter,
    }  # fmt: skip


# Reports


def results(**knn):
    """Of each variant with seeds 0, 1 ..., which have these accuracies."""
    more = {
        "consistency": {1: 0.9, 2: 0.7},
        "baselines": {"pixels": 0.5},
        "features": 0.25,
        "code": "abc",
        "machine": "a processor",
    }
    return {
        name: {seed: Result(value, {"layer3": value, "fc": 0.1}, **more) for seed, value in enumerate(values)}
        for name, values in knn.items()
    }


def test_values_of_a_result():
    result = results(a=[0.75])["a"][0]
    asked = (
        "knn",
        "linear",
        "consistency 2",
        "consistency 3",
        "least consistency",
        "features",
        "pixels",
        "whitened pixels",
    )
    assert [result.measure(what) for what in asked] == [0.75, 0.75, 0.7, None, 0.7, 0.25, 0.5, None]


def test_statements_are_tested_by_seed_or_against_a_number():
    found = results(**{"and": [0.80, 0.82, 0.84], "instance": [0.79, 0.80, 0.81, 0.99]})
    difference, said = assess(found, Statement("", Measure("and"), Measure("instance")))
    assert (difference.mean, difference.n, said) == (pytest.approx(0.02), 3, UNDECIDED)
    assert difference.interval == pytest.approx((0.02 - 4.302652729911275 * 0.01 / math.sqrt(3), 0.04484), abs=1e-5)
    assert assess(found, Statement("", Measure("and", "least consistency"), 0.5))[1] == HOLDS
    assert assess(found, Statement("", Measure("and", "pixels"), Measure("and")))[1] == OPPOSITE
    assert assess(found, Statement("", Measure("and"), Measure("k-10"))) == (None, UNDECIDED)
    assert measured(found, Measure("and", "consistency 9")) == {}


def test_the_report_as_json_and_in_words(tmp_path):
    found = results(**{"and": [0.80, 0.82, 0.84], "k-10": [0.70, 0.71, 0.735]})
    (tmp_path / "paper-digits-notes.md").write_text("## Trials\n\nBy hand.\n")
    path = write(DIGITS, found, tmp_path)
    content = json.loads((tmp_path / "paper-digits.json").read_text())
    assert set(content) == {"commit", "machine", "date", "variants", "items"}
    assert content["commit"] == "abc"
    # of the others there are no runs, or only those of the base variant, which no statement compares with itself
    assert set(content["items"]) == {"figure4", "figure6", "instance"}
    text = path.read_text()
    # k = 1 over 10, consistency from round 1 to 2 and above 50 %, and AND over pixels
    assert " 4 statements are tested" in text
    assert "| figure4 | one neighbour is best: k = 1 over k = 50 | not run | | 0 | undecided |" in text
    figure = content["items"]["figure4"]
    assert figure["variants"] == ["and", "k-10"]
    assert content["variants"]["k-10"]["knn"] == {"0": 0.70, "1": 0.71, "2": 0.735}
    assert content["variants"]["k-10"]["options"]["ANs_size"] == 10
    statement = figure["statements"][0]
    assert (statement["n"], statement["verdict"]) == (3, "holds")
    assert statement["difference"] == pytest.approx(0.105)
    assert statement["interval"] == pytest.approx([0.105 - 0.01242, 0.105 + 0.01242], abs=1e-5)
    assert figure["statements"][1] == {
        "text": "one neighbour is best: k = 1 over k = 50", "difference": None, "interval": None, "n": 0,
        "verdict": "undecided",
    }  # fmt: skip
    assert "| figure4 | one neighbour is best: k = 1 over k = 10 | +10.50 | +9.26 to +11.74 | 3 | **holds** |" in text
    assert "| k = 1 | 82.00 % | 77.03 to 86.97 | 3 | 86.3 % |" in text
    assert "| k = 50 | not run | | 0 | 79.3 % |" in text
    assert text.endswith("## Trials\n\nBy hand.\n")
    picture = (tmp_path / "paper-digits-figure4.svg").read_text()
    assert "<svg" in picture
    assert "k = 10" in picture
    assert not (tmp_path / "paper-digits-table2.svg").exists()


def test_the_plot_is_the_same_file_from_the_same_numbers(tmp_path):
    found = results(**{"and": [0.8, 0.9, 0.85]})
    for name in ("a", "b"):
        write(DIGITS, found, tmp_path / name)
    assert (tmp_path / "a" / "paper-digits-figure6.svg").read_bytes() == (
        tmp_path / "b" / "paper-digits-figure6.svg"
    ).read_bytes()


def test_the_ladder_shows_four_readings_and_the_cost(tmp_path):
    more = {"rank": 31.4, "processor": 512.4, "views": 100}
    readouts = {"embedding, whitened": 0.4, "backbone, plain": 0.5, "backbone, whitened": 0.625}
    found = {"ladder-faithful": {seed: Result(0.25, **more, readouts=readouts) for seed in range(3)}}
    text = write(DIGITS, found, tmp_path).read_text()
    assert "| | output | output, whitened | backbone | backbone, whitened | RankMe | views | processor s | n |" in text
    cells = ["25.00 ± 0.00 %", "40.00 ± 0.00 %", "50.00 ± 0.00 %", "62.50 ± 0.00 %", "31.4", "100", "512.4", "3"]
    assert f"| faithful | {' | '.join(cells)} |" in text
    statement = "| ladder | faithful: whitened backbone over output | +37.50 | +37.50 to +37.50 | 3 | **holds** |"
    assert statement in text


def test_processor_seconds_are_told_by_machine(tmp_path):
    found = {
        "ladder-faithful": {0: Result(0.25, processor=100.0, machine="B"), 1: Result(0.25, processor=50.0, machine="A"),
                            2: Result(0.25, processor=60.0, machine="A")},
        "ladder-features": {0: Result(0.25, processor=70.0, machine="B")},
    }  # fmt: skip
    text = write(DIGITS, found, tmp_path).read_text()
    assert "A [1]; B [2], " in text
    assert "| 55 [1], 100 [2] | 3 |" in text
    assert "| 70 [2] | 1 |" in text


def test_a_report_of_a_users_own_scale_names_its_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("dataset: digits\n")
    text = write(Plan(Scale.of(str(tmp_path / "mine.yaml"))), {}, tmp_path).read_text()
    assert "`python3 -m benchmarks.paper ITEM ... --scale mine.yaml --seeds N`; recipe: `mine.yaml` over" in text


def test_a_report_without_runs_says_so():
    found = as_json(DIGITS, {}, "2026-01-01")
    assert found["items"] == {}
    assert "| AND | not run | | 0 | 86.3 % |" in markdown(DIGITS, {}, found)


def test_a_report_keeps_the_runs_of_the_one_before(tmp_path):
    readouts, more = {"backbone, whitened": 0.625}, {"rank": 31.4, "processor": 512.4, "views": 50}
    found = results(**{"and": [0.80, 0.82, 0.84], "k-10": [0.70, 0.71, 0.735]})
    found["ladder-faithful"] = {seed: Result(0.25, **more, readouts=readouts) for seed in (0, 2)}
    found["rounds-1"] = {0: Result(0.5)}  # of no statement that can be tested yet
    write(DIGITS, found, tmp_path)
    assert earlier(DIGITS, tmp_path) == (found, [])
    assert earlier(Plan(Scale.of("fashion")), tmp_path) == ({}, [])


def test_runs_of_the_report_before_with_other_options_are_left_out(tmp_path):
    found = results(**{"and": [0.80, 0.82, 0.84], "k-10": [0.70, 0.71, 0.735]})
    path = write(DIGITS, found, tmp_path).with_suffix(".json")
    content = json.loads(path.read_text())
    content["variants"]["k-10"]["options"]["base_lr"] = 0.5
    del content["variants"]["and"]["options"]["lr_policy"]  # as if the option were younger; AND has its default
    path.write_text(json.dumps(content))
    assert earlier(DIGITS, tmp_path) == ({"and": found["and"]}, ["k-10"])


# Runs


def session(run, final=True, **changes):
    """A session folder as a run leaves it, without a network."""
    (run.folder / "checkpoint").mkdir(parents=True)
    words = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    settings = collect([*DIGITS.scale.arguments(run.variant), "--seed", str(run.seed), *words])
    (run.folder / "config.yaml").write_text(to_yaml(settings))
    lines = [
        {"round": number, "epoch": 8, "seconds": 2.0, "consistency": 0.9 - number / 10 if number else None}
        for number in range(5)
    ]
    lines[-1]["linear_layer3_top1"] = 0.75
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.folder / "processor.jsonl").write_text(json.dumps({"seconds": 7.5, "machine": "another processor"}) + "\n")
    (run.folder / "starts.jsonl").write_text(json.dumps({"code": "abc", "device": "CPU"}) + "\n")
    if final:
        last = {"round": 4, "epoch": 8, "top1": 0.875, "top5": 1.0, "baselines": {"pixels": 0.5}}
        (run.folder / "final.json").write_text(json.dumps(last) + "\n")


def base_run(folder, seed=0, call=None, variant=BASE):
    return Run(DIGITS.scale, DIGITS.variants[variant], seed, call or Call(folder))


def test_states_and_results_of_a_run(tmp_path):
    run = base_run(tmp_path)
    assert run.state == MISSING
    assert run.folder == tmp_path / "digits" / "and-s0"
    assert run.command()[-4:] == ["--sess-dir", str(tmp_path / "digits"), "--session", "and-s0"]
    session(run, final=False)
    assert (run.state, run.epochs_done(), run.seconds()) == (BEGUN, 5, 10.0)
    (run.folder / "checkpoint" / "0001-00359.ckpt").touch()
    assert run.command()[:2] == ["--resume", str(run.folder)]
    (run.folder / "final.json").write_text(json.dumps({"round": 4, "epoch": 8, "top1": 0.875, "top5": 1.0}))
    assert run.state == FINISHED
    assert run.result() == Result(
            0.875, {"layer3": 0.75}, {1: 0.8, 2: 0.7, 3: pytest.approx(0.6), 4: 0.5}, {}, None, 10.0, "abc", "CPU",
            "another processor", processor=7.5, views=40,
        )  # fmt: skip


def test_a_run_is_finished_once_its_readouts_exist(tmp_path):
    run = base_run(tmp_path, variant="ladder-adamw")
    session(run)
    assert run.state == BEGUN
    (run.folder / "readouts.json").write_text(json.dumps({"backbone, whitened": 0.9}))
    (run.folder / "processor.jsonl").write_text('{"seconds": 3.5}\n{"seconds": 2}\n')
    assert run.state == FINISHED
    result = run.result()
    assert [result.measure(what) for what in ("knn", "backbone, whitened", "processor", "views")] == [
        0.875,
        0.9,
        5.5,
        40,
    ]


def test_a_session_of_another_recipe_does_not_stop_the_report(tmp_path, capsys):
    good, other = base_run(tmp_path), base_run(tmp_path, seed=7)
    session(good)
    session(other, base_lr=0.5)
    results = command.Queue(DIGITS, ["table6"], 1, Call(tmp_path)).results()
    assert list(results[BASE]) == [0]
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--print-args"], ["--debug"], ["--session", "x"], ["--compare", "x", "y"]])
def test_options_that_make_no_run_are_refused(tmp_path, arguments):
    with pytest.raises(UserError, match=f"{arguments[0]} is not for this command"):
        Call(tmp_path, extra=tuple(arguments)).check()


def test_a_session_of_another_recipe_is_refused(tmp_path):
    run = base_run(tmp_path)
    session(run, base_lr=0.5)
    with pytest.raises(UserError, match=r"and-s0 was run with base_lr 0.5, and and has 0.001 now; move it away"):
        assert run.state
    other = base_run(tmp_path, seed=1)
    session(other, threads=2, data_root="elsewhere", keep=3)
    assert other.state == FINISHED


def test_a_run_without_a_checkpoint_starts_again(tmp_path):
    run = base_run(tmp_path)
    session(run, final=False)
    run.prepare()
    assert run.state == MISSING
    assert not run.folder.exists()


def test_only_the_last_checkpoint_of_a_finished_run_stays(tmp_path):
    run = base_run(tmp_path)
    session(run)
    for name in ("0003-01077.ckpt", "0004-01437.ckpt", "0004-01437-best.ckpt"):
        (run.folder / "checkpoint" / name).touch()
    run.tidy()
    assert [path.name for path in (run.folder / "checkpoint").iterdir()] == ["0004-01437.ckpt"]


def test_runs_without_their_data_set_are_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scale = Scale.of(FULL)
    run = Run(scale, Variant("cub200", configs=("cub200",)), 0, Call(Path("s")))
    assert run.state == NO_DATA
    (tmp_path / "data" / "cub200").mkdir(parents=True)
    assert run.state == MISSING
    below = Run(scale, Variant("cub200", configs=("cub200",)), 0, Call(Path("s"), str(tmp_path / "data")))
    assert below.command()[-2:] == ["--data-root", str(tmp_path / "data" / "cub200")]
    assert command.main(["table3", "--scale", "paper", "--seeds", "1", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "dogs-s0                  no data   dogs; once it is there: python3 main.py --cfgs" in out
    assert "1 of 2 runs to make" in out


# The command


def test_list_names_every_item(capsys):
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)


def test_dry_run_counts_each_run_once_and_estimates_by_what_was_measured(tmp_path, capsys):
    session(base_run(tmp_path))
    session(base_run(tmp_path, seed=1), final=False)
    arguments = ["figure6", "figure4", "--seeds", "2", "--sess-dir", str(tmp_path), "--dry-run"]
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "figure6:", "and-s0", "and-s1", "figure4:", "k-10-s0", "k-50-s0", "k-100-s0", "k-10-s1", "k-50-s1", "k-100-s1",
        "7",
    ]  # fmt: skip
    assert lines[1].split()[1] == "finished"
    assert lines[2].split()[1:] == ["begun", "35", "epochs,", "70", "s"]  # 2 s a line of the metrics
    assert lines[4].split()[1:] == ["missing", "40", "epochs,", "80", "s"]  # like `and`: the same network and images
    assert lines[-1] == "7 of 8 runs to make, 1 finished; 9 min of training"  # 70 + 6 x 80 s


def test_report_option_starts_no_run(tmp_path, capsys):
    session(base_run(tmp_path))
    arguments = ["table6", "--sess-dir", str(tmp_path), "--reports", str(tmp_path / "r"), "--report"]
    assert command.main(arguments) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'r' / 'paper-digits.md'}\n"
    found = json.loads((tmp_path / "r" / "paper-digits.json").read_text())
    assert found["variants"]["and"]["consistency"] == {"0": {"1": 0.8, "2": 0.7, "3": pytest.approx(0.6), "4": 0.5}}


def test_a_report_adds_its_sessions_to_the_runs_of_another_machine(tmp_path, capsys):
    session(base_run(tmp_path))
    there = results(**{"and": [0.80, 0.82], "k-10": [0.70, 0.71]})
    write(DIGITS, there, tmp_path / "r")
    arguments = ["table6", "--sess-dir", str(tmp_path), "--reports", str(tmp_path / "r"), "--report"]
    assert command.main(arguments) == 0
    found = json.loads((tmp_path / "r" / "paper-digits.json").read_text())
    assert found["variants"]["and"]["knn"] == {"0": 0.875, "1": 0.82}  # a session comes first
    assert found["variants"]["k-10"]["knn"] == {"0": 0.70, "1": 0.71}
    assert found["machine"] == "a processor [1]; another processor [2]"

    (tmp_path / "r" / "paper-digits.json").write_text('{"items": ')
    for how in ([], ["--report"]):
        assert command.main([*arguments[:-1], *how]) == 2
        assert "paper-digits.json is not a report's file (JSONDecodeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["table9"], "no such item: table9; --list names them"),
        ([], "name items, or all"),
        (["table6", "--seeds", "0"], "expected a number from 1 to 1000, got '0'"),
        (
            ["table6", "--scale", "huge"],
            "--scale huge: expected one of digits, fashion, cifar-small, paper, or the path",
        ),
        (["table6", "--scale", "my/digits.yaml"], "digits is the name of a scale of the project; rename the file"),
        (["table6", "--max-epoch", "3"], "--max-epoch belongs to the recipe; write it into a YAML file"),
        (["table6", "--thread", "1"], "did you mean --threads?"),
    ],
)
def test_mistakes_are_named(arguments, reason, tmp_path, capsys):
    try:
        status = command.main([*arguments, "--sess-dir", str(tmp_path), "--dry-run"])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert reason in capsys.readouterr().err
