"""main.py as a user calls it, on digits: a whole tiny run, its files, resuming, evaluating, and errors."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import find_checkpoint
from tests.helpers.runs import ROOT, call, checkpoints, killed_after, start, wait_for

TINY = [
    "--cfgs", "configs/base.yaml", "configs/digits.yaml", "--limit-train", "50", "--limit-test", "30",
    "--batch-size", "32", "--max-round", "3", "--max-epoch", "2", "--optimizer", "sgd", "--base-lr", "0.03",
    "--lr-decay-offset", "0", "--lr-decay-step", "1", "--network", "convnet", "--no-report",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped: its session folder and what it printed on standard output and error."""
    base = tmp_path_factory.mktemp("sessions")
    status, out, err = call(*TINY, "--sess-dir", base, "--session", "whole")
    assert status == 0, err
    return base / "whole", out, err


def metrics_of(session):
    return [json.loads(line) for line in (session / "metrics.jsonl").read_text().splitlines()]


def flat(value, name=""):
    """Every leaf of a checkpoint by its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{name}/{number}")
    else:
        yield name, value


NOT_OF_THE_RUN = ("seconds", "session", "sess_dir")


def assert_same_run(one, other):
    """Compare weights, optimiser, bank, anchors and accuracies: everything except times."""
    one, other = dict(flat(checkpoint.load(one))), dict(flat(checkpoint.load(other)))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name.split("/")[-1] in NOT_OF_THE_RUN:
            continue
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[name].dtype, name
            assert np.array_equal(value.numpy(), other[name].numpy(), equal_nan=value.is_floating_point()), name
        else:
            assert value == other[name], name


def test_a_run_writes_all_its_files(whole):
    session = whole[0]
    files = sorted(str(path.relative_to(session)) for path in session.rglob("*") if path.is_file())
    files = [name for name in files if not name.startswith("tfboard")]
    assert files == [
        "checkpoint/0000-00000-best.ckpt",
        "checkpoint/0000-00000.ckpt",
        "checkpoint/0001-00012-best.ckpt",
        "checkpoint/0001-00012.ckpt",
        "checkpoint/0002-00025-best.ckpt",
        "checkpoint/0002-00025-e0001-s000000.ckpt",
        "checkpoint/0002-00025.ckpt",
        "config.yaml",
        "final.json",
        "log.txt",
        "metrics.jsonl",
        "starts.jsonl",
    ]


def test_metrics_have_a_line_an_epoch(whole):
    records = metrics_of(whole[0])
    assert [(r["round"], r["epoch"], r["anchors"]) for r in records] == [
        (0, 1, 0), (0, 2, 0), (1, 1, 12), (1, 2, 12), (2, 1, 25), (2, 2, 25),
    ]  # fmt: skip
    assert [r["lr"] for r in records] == pytest.approx([0.03, 0.003] * 3)
    for record in records:
        of_the_finished_network = {"rankme_embedding"} if record is records[-1] else set()
        assert set(record) - of_the_finished_network == {
            "round", "epoch", "anchors", "consistency", "loss", "lr", "knn_top1", "knn_top5",
            "images_per_second", "seconds", "entropy", "anchor_entropy", "neighbours_kept", "neighbour_cosine",
            "clusters",
        }  # fmt: skip
        assert 0 <= record["knn_top1"] <= record["knn_top5"] <= 1
        assert record["loss"] > 0
        assert record["images_per_second"] > 0
        assert 0 < record["entropy"] <= np.log(50)
        assert -1 <= record["neighbour_cosine"] <= 1.000001
        assert (record["clusters"] is None) == (record["epoch"] == 1)
        assert (record["anchor_entropy"] is None) == (record["neighbours_kept"] is None) == (record["round"] == 0)
    assert all(sum(record["clusters"]) == 50 for record in records[1::2])
    assert 1 <= records[-1]["rankme_embedding"] <= 50
    assert records[0]["consistency"] is None
    assert 0 <= records[2]["consistency"] <= 1


def test_the_closing_table(whole):
    out = whole[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert rows[0][:4] == ["round", "anchors", "consistency", "kNN last"]
    assert [row[0] for row in rows[1:4]] == ["pixels", "whitened pixels", "untrained network"]
    assert [row[:2] for row in rows[4:7]] == [["0", "0"], ["1", "12"], ["2", "25"]]
    last = metrics_of(whole[0])[-1]
    assert rows[6][3] == f"{100 * last['knn_top1']:.2f} %"
    assert rows[4][2] == "-"
    header, *unlabelled = rows[7:]
    assert header[:4] == ["round", "anchors", "loss", "entropy"]
    assert [row[:2] for row in unlabelled] == [["0", "0"], ["1", "12"], ["2", "25"]]
    assert unlabelled[2][2:4] == [f"{last['loss']:.3f}", f"{last['entropy']:.3f}"]
    assert unlabelled[2][5:7] == [f"{100 * last['neighbours_kept']:.1f} %", f"{last['neighbour_cosine']:.3f}"]
    assert str(whole[0]) in out.splitlines()[-1]
    assert "training features recomputed: top-1" in out


def test_the_log_says_what_ran(whole):
    log = (whole[0] / "log.txt").read_text()
    for expected in ("command   python3 main.py --cfgs", "code      ", f"torch {torch.__version__}", "device    CPU",
                     "data      digits: 50 training, 30 test", "options   ", "round 1: 12 anchors of 50"):  # fmt: skip
        assert expected in log


def test_plain_lines_go_to_a_pipe(whole):
    out = whole[1]
    assert "\r" not in out + whole[2]
    assert sum(line.startswith("round 0 epoch") for line in out.splitlines()) == 2


def test_checkpoint_layout(whole):
    state = torch.load(whole[0] / "checkpoint" / "0001-00012.ckpt", map_location="cpu") if not hasattr(
        torch.serialization, "add_safe_globals"
    ) else torch.load(whole[0] / "checkpoint" / "0001-00012.ckpt", weights_only=True)  # fmt: skip
    assert {"net", "optimizer", "npc", "ANs_discovery", "acc", "epoch", "round", "session"} <= set(state)
    assert (state["round"], state["epoch"], state["session"]) == (1, 2, "whole")
    assert state["acc"] == metrics_of(whole[0])[3]["knn_top1"]
    memory = state["npc"]["memory"]
    assert memory.shape == (50, 128)
    assert memory.norm(dim=1).numpy() == pytest.approx(np.ones(50), abs=1e-5)
    found = state["ANs_discovery"]
    assert found["anchor_indexes"].shape == (12,)
    assert found["instance_indexes"].shape == (38,)
    assert found["position"].shape == found["entropy"].shape == (50,)
    assert found["neighbours"].shape == (12, 1)
    assert found["consistency"] == metrics_of(whole[0])[3]["consistency"]


def test_anchors_of_a_round_come_from_the_bank_at_the_end_of_the_one_before(whole):
    from tests.helpers import oracles

    before = checkpoint.load(whole[0] / "checkpoint" / "0000-00000.ckpt")
    after = checkpoint.load(whole[0] / "checkpoint" / "0001-00012.ckpt")
    memory = before["npc"]["memory"].double().numpy()
    anchors = oracles.anchors(oracles.entropies(memory, 0.1), 12)
    assert after["ANs_discovery"]["anchor_indexes"].tolist() == anchors
    assert after["ANs_discovery"]["neighbours"].tolist() == [oracles.neighbours(memory, a, 1) for a in anchors]


def test_tensorboard_tags_can_be_read_back(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = whole[0] / "tfboard"
    assert sorted(path.name for path in board.iterdir()) == ["round-0", "round-1", "round-2", "run"]
    run = EventAccumulator(str(board / "run")).Reload()
    scalars = {"Train/Loss", "Train/Learning_Rate", "Train/Images_per_second", "Evaluate/Rank-1",
               "Evaluate/best_acc", "ANs/Number", "ANs/Consistency"}  # fmt: skip
    assert scalars <= set(run.Tags()["scalars"])
    assert "ANs/Entropy" in run.Tags()["histograms"]
    records = metrics_of(whole[0])
    assert [e.value for e in run.Scalars("Train/Loss")] == pytest.approx([r["loss"] for r in records], rel=1e-5)
    assert [e.step for e in run.Scalars("Train/Loss")] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in run.Scalars("ANs/Number")] == [0, 12, 25]
    best = np.maximum.accumulate([r["knn_top1"] for r in records])
    assert [e.value for e in run.Scalars("Evaluate/best_acc")] == pytest.approx(best, rel=1e-5)
    second = EventAccumulator(str(board / "round-2")).Reload()
    assert [e.step for e in second.Scalars("Evaluate/Rank-1")] == [1, 2]
    assert len(second.Histograms("ANs/Entropy")) == 1


def test_config_yaml_gives_the_same_run(whole, tmp_path, capsys):
    config = str(whole[0] / "config.yaml")
    assert main.main(["--cfgs", config, "--sess-dir", str(tmp_path), "--session", "again", "--seed", "0"]) == 0
    one, other = (
        dict(flat(checkpoint.load(s / "checkpoint" / "0002-00025.ckpt"))) for s in (whole[0], tmp_path / "again")
    )
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert np.array_equal(value.numpy(), other[name].numpy(), equal_nan=value.is_floating_point()), name


def test_a_killed_run_resumes_to_the_same_result(whole, tmp_path):
    """SIGKILL after three epochs, then --resume: bit for bit the run that was never stopped."""
    killed_after("0001-00012.ckpt", *TINY, "--sess-dir", tmp_path, "--session", "killed")
    assert len(metrics_of(tmp_path / "killed")) < 6
    status, out, err = call("--resume", tmp_path / "killed")
    assert status == 0, err
    assert "resumed" in out
    assert_same_session(whole[0], tmp_path / "killed")


@pytest.mark.slow
def test_a_killed_run_of_resnet18_in_fresh_interpreters(tmp_path):
    """Like the test above, but another process sends SIGKILL."""
    arguments = [*TINY, "--network", "resnet18", "--sess-dir", tmp_path]
    status, _, err = call(*arguments, "--session", "whole", fresh=True)
    assert status == 0, err
    session = tmp_path / "killed"
    process = start(*arguments, "--session", "killed", fresh=True)
    wait_for(lambda: "0001-00012.ckpt" in checkpoints(session), process)
    process.kill()
    process.communicate()
    assert len(metrics_of(session)) < 6
    status, _, err = call("--resume", session, fresh=True)
    assert status == 0, err
    assert_same_session(tmp_path / "whole", session)


def assert_same_session(one, other):
    for name in ("0002-00025.ckpt", "0001-00012.ckpt"):
        assert_same_run(one / "checkpoint" / name, other / "checkpoint" / name)
    one, other = (
        [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in metrics_of(session)]
        for session in (one, other)
    )
    assert one == other


def test_restart_takes_the_state_into_a_new_session(whole, tmp_path, capsys):
    before = {p: p.read_bytes() for p in whole[0].rglob("*") if p.is_file()}
    first = whole[0] / "checkpoint" / "0000-00000.ckpt"
    assert main.main(["--resume", str(first), "--restart", "--sess-dir", str(tmp_path), "--session", "new"]) == 0
    assert_same_run(whole[0] / "checkpoint" / "0002-00025.ckpt", tmp_path / "new" / "checkpoint" / "0002-00025.ckpt")
    assert before == {p: p.read_bytes() for p in whole[0].rglob("*") if p.is_file()}
    assert [r["round"] for r in metrics_of(tmp_path / "new")] == [1, 1, 2, 2]


def test_resuming_an_earlier_checkpoint_moves_later_rounds_to_superseded(whole, tmp_path, capsys):
    """Resume from round 0 with fewer rounds: the later rounds of the old run must not be used."""
    session = tmp_path / "back"
    shutil.copytree(whole[0], session)
    assert main.main(["--resume", str(session / "checkpoint" / "0000-00000-best.ckpt"), "--max-round", "1"]) == 0
    names = sorted(path.name for path in (session / "checkpoint").glob("*.ckpt"))
    assert names in (["0000-00000-best.ckpt", "0000-00000.ckpt"], ["0000-00000-best.ckpt"])
    aside = {path.name for path in (session / "checkpoint" / "superseded").iterdir()}
    assert {"0001-00012.ckpt", "0001-00012-best.ckpt", "0002-00025.ckpt", "0002-00025-best.ckpt"} <= aside
    assert "final.json" in aside  # of round 2; it would be taken for that of another network that comes there
    assert json.loads((session / "final.json").read_text())["round"] == 0
    assert "0000" in str(find_checkpoint(str(session), "")).rsplit("/", 1)[1]
    assert all(record["round"] == 0 for record in metrics_of(session))
    superseded = (session / "metrics.superseded.jsonl").read_text().splitlines()
    assert {json.loads(line)["round"] for line in superseded} >= {1, 2}
    assert "max_round: 1" in (session / "config.yaml").read_text()
    assert "max_round: 3" in (session / "config.before.yaml").read_text()


def test_a_finished_run_can_be_given_more_rounds(whole, tmp_path, capsys):
    session = tmp_path / "more"
    shutil.copytree(whole[0], session)
    assert main.main(["--resume", str(session)]) == 0  # nothing is left to do: the table again, nothing trained
    assert len(metrics_of(session)) == 6
    assert main.main(["--resume", str(session), "--max-round", "4"]) == 0
    assert [(r["round"], r["epoch"]) for r in metrics_of(session)][6:] == [(3, 1), (3, 2)]
    assert metrics_of(session)[-1]["anchors"] == 37


def test_other_optimiser_workers_and_accumulation_resume_alike(tmp_path, capsys):
    arguments = [*TINY, "--limit-train", "40", "--batch-size", "16", "--max-round", "2", "--max-epoch", "1",
                 "--optimizer", "adam", "--base-lr", "0.001", "--iter-size", "2", "--augment-on", "workers",
                 "--workers-num", "1", "--sess-dir", str(tmp_path)]  # fmt: skip
    assert main.main([*arguments, "--session", "whole"]) == 0
    first = tmp_path / "whole" / "checkpoint" / "0000-00000.ckpt"
    assert main.main([*arguments, "--resume", str(first), "--restart", "--session", "resumed"]) == 0
    assert_same_run(*(tmp_path / name / "checkpoint" / "0001-00010.ckpt" for name in ("whole", "resumed")))


def test_test_only_evaluates_with_recomputed_features(whole, capsys):
    last = whole[0] / "checkpoint" / "0002-00025.ckpt"
    before = sorted(whole[0].rglob("*"))
    assert main.main(["--resume", str(last), "--test-only"]) == 0
    out = capsys.readouterr().out
    closing = next(line for line in whole[1].splitlines() if "recomputed" in line)
    assert closing.split("recomputed: ")[1] in out
    assert "round 2, epoch 2" in out
    assert sorted(whole[0].rglob("*")) == before
    assert main.main(["--resume", str(last), "--test-only", "--protocol", "nn", "--gpus", "cpu"]) == 0
    assert "nn top-1" in capsys.readouterr().out


def test_debug_writes_nothing(tmp_path, capsys):
    arguments = [*TINY, "--max-round", "1", "--max-epoch", "1", "--sess-dir", str(tmp_path / "s"), "--debug"]
    assert main.main(arguments) == 0
    assert not (tmp_path / "s").exists()
    assert "session   none" in capsys.readouterr().out


def test_brief_shows_rounds_only(tmp_path, capsys):
    arguments = [*TINY, "--max-round", "1", "--max-epoch", "1", "--sess-dir", str(tmp_path), "--brief"]
    assert main.main([*arguments, "--no-log-file", "--no-log-tfb"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("round 0 done")
    (session,) = tmp_path.iterdir()
    assert sorted(p.name for p in session.iterdir()) == [
        "checkpoint", "config.yaml", "final.json", "metrics.jsonl", "starts.jsonl"
    ]  # fmt: skip


def test_epochs_that_are_not_evaluated_have_null_accuracy(tmp_path, capsys):
    arguments = [*TINY, "--max-round", "1", "--max-epoch", "3", "--eval-freq", "2", "--sess-dir", str(tmp_path)]
    assert main.main([*arguments, "--session", "s", "--iter-size", "2"]) == 0
    assert [r["knn_top1"] is None for r in metrics_of(tmp_path / "s")] == [True, False, False]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of JPEG files of various sizes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for part, count in (("train", 9), ("test", 4)):
        for label in ("bright", "dark"):
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                level = 180 if label == "bright" else 20
                pixels = rng.integers(level, level + 60, (20 + number, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.jpg")
    return root


SMALL = ["--network", "convnet", "--size", "16", "--batch-size", "8", "--max-round", "2", "--max-epoch", "1",
         "--limit-train", "17", "--ANs-select-rate", "0.25", "--no-report", "--gpus", "cpu"]  # fmt: skip


def test_a_folder_of_images(folder, tmp_path, capsys):
    arguments = ["--dataset", "imagefolder", "--data-root", str(folder), *SMALL, "--sess-dir", str(tmp_path)]
    assert main.main([*arguments, "--session", "two", "--workers-num", "2"]) == 0
    assert main.main([*arguments, "--session", "zero", "--workers-num", "0"]) == 0
    assert_same_run_but_options(
        tmp_path / "two" / "checkpoint" / "0001-00004.ckpt", tmp_path / "zero" / "checkpoint" / "0001-00004.ckpt"
    )


def assert_same_run_but_options(one, other):
    one, other = checkpoint.load(one), checkpoint.load(other)
    assert torch.equal(one["npc"]["memory"], other["npc"]["memory"])
    for name, value in one["net"].items():
        assert torch.equal(value, other["net"][name]), name


def test_a_folder_without_labels_or_test_images_trains_without_made_up_accuracies(folder, tmp_path, capsys):
    root = tmp_path / "plain"
    (root / "train").mkdir(parents=True)
    for number, file in enumerate(sorted((folder / "train").rglob("*.jpg"))):
        (root / "train" / f"{number}.jpg").write_bytes(file.read_bytes())
    arguments = ["--dataset", "imagefolder", "--data-root", str(root), *SMALL, "--sess-dir", str(tmp_path / "s")]
    assert main.main([*arguments, "--session", "x"]) == 0
    assert all(r["knn_top1"] is None and r["consistency"] is None for r in metrics_of(tmp_path / "s" / "x"))
    out = capsys.readouterr().out
    assert "without labels: loss, entropy, neighbours, clusters; no accuracy" in out
    assert "kNN" not in out
    assert "consistency" not in out
    assert "| round | anchors |  loss | entropy |" in out
    last = tmp_path / "s" / "x"
    assert main.main(["--resume", str(last), "--test-only"]) == 2
    assert "no labelled test images" in capsys.readouterr().err


def error_of(capsys, *arguments):
    status = main.main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    return status, err


def test_mistakes_are_one_line_with_status_2(whole, tmp_path, capsys):
    checkpoint_file = whole[0] / "checkpoint" / "0002-00025.ckpt"
    cases = [
        (["--dataset", "cifar10", "--data-root", tmp_path / "none"], "--download"),
        (["--dataset", "imagefolder", "--data-root", tmp_path / "none"], "none"),
        (["--gpus", "7", "--dataset", "digits"], "no such device; this machine has: cpu"),
        (["--resume", tmp_path / "no.ckpt"], "there is no such file or session folder"),
        (["--resume", checkpoint_file, "--low-dim", "64"], "holds another network than --network, --low-dim"),
        (["--resume", checkpoint_file, "--network", "resnet18"], "holds another network"),
        (["--resume", checkpoint_file, "--limit-train", "40"], "memory bank is 50 x 128, this run's 40 x 128"),
        (["--resume", checkpoint_file, "--optimizer", "adam"], "made with --optimizer sgd"),
        (["--resume", checkpoint_file, "--seed", "5"], "belongs to other training images (digits, 50)"),
        (["--resume", checkpoint_file, "--session", "x"], "add --restart to continue in a new one"),
        ([*TINY, "--batch-size", "1"], "--batch-size"),
        ([*TINY, "--ANs-size", "50"], "an anchor has only 49 other images"),
        ([*TINY, "--limit-train", "1"], "at least 2 are needed"),
        ([*TINY, "--limit-train", "3"], "no anchor among 3 images in round 1"),
        ([*TINY, "--sess-dir", whole[0].parent, "--session", "whole"], "exists; resume it with --resume"),
        (["--cfgs", tmp_path / "none.yaml"], "none.yaml"),
        (["--batchsize", "3"], "did you mean --batch-size"),
    ]
    for arguments, expected in cases:
        status, err = error_of(capsys, *arguments)
        assert status == 2, err
        assert expected in err


def test_a_checkpoint_outside_its_session_needs_restart(whole, tmp_path, capsys):
    lone = tmp_path / "lone.ckpt"
    lone.write_bytes((whole[0] / "checkpoint" / "0000-00000.ckpt").read_bytes())
    status, err = error_of(capsys, "--resume", lone)
    assert status == 2
    assert "add --restart" in err


def test_a_full_disk_is_one_line_with_status_1(tmp_path, capsys, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    status, err = error_of(capsys, *TINY, "--sess-dir", tmp_path)
    assert status == 1
    assert "No space left on device" in err


def test_a_diverging_loss_is_one_line_with_status_1(tmp_path, capsys):
    status, err = error_of(capsys, *TINY, "--base-lr", "1e30", "--sess-dir", tmp_path)
    assert status == 1
    assert "try a lower --base-lr" in err


def test_debug_errors_shows_where_it_happened(tmp_path, capsys):
    arguments = ["--dataset", "imagefolder", "--debug-errors", "--sess-dir", str(tmp_path)]
    assert main.main([*arguments, "--data-root", str(tmp_path / "none")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "UserError" in err.splitlines()[-1]


@pytest.mark.parametrize(("gpus", "back"), [("cpu", ("cpu", "checkpoint")), ("0,1", ("auto", "default"))])
def test_gpu_indices_are_not_restored_on_resume(monkeypatch, capsys, gpus, back):
    import lib.checkpoint.manager

    resumed = ({"options": {"gpus": gpus}}, Path("some"), ())
    monkeypatch.setattr(lib.checkpoint.manager, "open_checkpoint", lambda *arguments: resumed)
    assert main.main(["--resume", "some", "--print-args"]) == 0
    row = printed_options(capsys)["gpus"]
    assert (row[2], row[-2]) == back


def printed_options(capsys):
    """The rows of the table, by the names of the options."""
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    return {row[1]: row for row in rows if len(row) > 3}


def test_print_args_shows_values_and_their_origin(capsys):
    assert main.main([*TINY, "--print-args"]) == 0
    by_name = printed_options(capsys)
    assert "command line" in by_name["max_round"]
    assert "configs/base.yaml" in by_name["weight_decay"]
    assert "default" in by_name["seed"]


def test_a_missing_package_error_says_how_to_install_it():
    """As if another Python than that of the environment were called."""
    code = "import sys; sys.modules['prettytable'] = None; import main; sys.exit(main.main(['--print-args']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: the Python package prettytable is missing in {sys.executable}; use the env")


def test_help_starts_fast_and_survives_a_closed_pipe():
    started = time.monotonic()
    result = subprocess.run(
        f"{sys.executable} main.py --help | head -n 1", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert time.monotonic() - started < 5  # far below; torch alone takes seconds
    assert result.stderr == ""
    assert result.stdout.strip()
