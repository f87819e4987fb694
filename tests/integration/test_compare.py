"""--compare on sessions made of text files, as a run leaves them; no training, no PyTorch."""

import json

import pytest

import main
from lib.report.compare import Comparison, as_text, text_plot
from lib.session.records import SessionRecord
from tests.helpers.html_page import check_rules
from tests.helpers.sessions import make


def tables_of(*folders):
    return Comparison([SessionRecord.read(folder, "--compare") for folder in folders]).tables()


def test_the_comparison_lists_only_differences(tmp_path):
    one = make(tmp_path / "one", seed=0, limit_train=50)
    two = make(tmp_path / "two", seed=3, limit_train=40, scale="(0.5, 1)")
    head, body = tables_of(one, two)["options and environment that differ"]
    assert head == ["", "A", "B"]
    assert body == [
        ["scale", "(0.2, 1.0)", "(0.5, 1.0)"],  # not in the first one's file: its default
        ["limit_train", "50", "40"],
        ["seed", "0", "3"],
        ["training images", "50", "40"],
    ]
    assert tables_of(one, make(tmp_path / "same", seed=0, limit_train=50))[
        "options and environment that differ"
    ][1] == []  # fmt: skip


def test_results_are_those_of_the_metrics(tmp_path):
    whole = make(tmp_path / "whole", final=0.5)
    stopped = make(tmp_path / "stopped", rounds=3, done=1, starts=False)
    fresh = make(tmp_path / "fresh", done=0)
    tables = tables_of(whole, stopped, fresh)
    results = {row[0]: row[1:] for row in tables["results"][1]}
    assert results == {
        "epochs completed": ["4", "1", "0"],
        "top-1, last": ["40.00 %", "10.00 %", "-"],
        "top-1, best epoch": ["40.00 %", "10.00 %", "-"],
        "its round and epoch": ["1, 2", "0, 1", "-"],
        "top-1, recomputed": ["50.00 %", "-", "-"],
        "top-5, recomputed": ["100.00 %", "-", "-"],
        "consistent pairs, last": ["75.00 %", "-", "-"],
        "anchors, last": ["10", "0", "-"],
        "loss, last": ["3.5", "5", "-"],
        "training time": ["8 s", "2 s", "-"],
    }
    assert tables["top-1 at the end of each round"][1] == [["0", "20.00 %", "10.00 %", "-"], ["1", "40.00 %", "-", "-"]]
    assert tables["consistent pairs in each round"][1] == [["0", "-", "-", "-"], ["1", "75.00 %", "-", "-"]]
    assert tables["loss at the end of each round"][1] == [["0", "4.5", "5", "-"], ["1", "3.5", "-", "-"]]


def test_a_final_accuracy_counts_only_while_it_is_of_the_last_epoch(tmp_path):
    session = make(tmp_path / "s", final=0.5)
    with open(session / "metrics.jsonl", "a") as file:
        line = json.loads((session / "metrics.jsonl").read_text().splitlines()[-1])
        file.write(json.dumps({**line, "round": 2, "epoch": 1}) + "\n")
    assert SessionRecord.read(session, "").final is None


def test_the_comparison_names_caveats(tmp_path):
    one = make(tmp_path / "one", protocol="knn", limit_train=50)
    two = make(tmp_path / "two", protocol="nn", limit_train=40, done=3)
    notes = Comparison([SessionRecord.read(folder, "") for folder in (one, two)]).notes
    assert notes == [
        "accuracies are not comparable: protocol differs",
        "losses are not comparable: the numbers of training images differ, and chance is log N",
        "not finished: B",
    ]


def test_the_comparison_names_other_pictures_labels_and_temperatures(tmp_path):
    folders = [make(tmp_path / name, labels=labels, npc_temperature=tau) for name, labels, tau in (
        ("a", "folders", 0.1), ("b", "kinds.csv", 0.3))]  # fmt: skip
    for folder, fingerprint in zip(folders, ("11", "22")):
        start = json.loads((folder / "starts.jsonl").read_text().splitlines()[-1])
        (folder / "starts.jsonl").write_text(json.dumps({**start, "fingerprint": fingerprint}) + "\n")
    notes = Comparison([SessionRecord.read(folder, "") for folder in folders]).notes
    assert notes == [
        "accuracies are not comparable: labels differs",
        "losses are not comparable: npc_temperature differs",
        "accuracies and losses are not comparable: the training images differ",
    ]
    for contents, said in (((None, "22"), False), (("11", "11"), False), (("11", "22"), True)):
        for folder, content in zip(folders, contents):
            start = json.loads((folder / "starts.jsonl").read_text().splitlines()[-1])
            start.update(fingerprint="11", contents=content)
            (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
        notes = Comparison([SessionRecord.read(folder, "") for folder in folders]).notes
        note = "accuracies and losses are not comparable: training images of the same names differ"
        assert (note in notes) == said


def test_sessions_without_labels_have_no_empty_rows(tmp_path):
    folders = [make(tmp_path / name, accuracies=False) for name in "ab"]
    words = as_text(Comparison([SessionRecord.read(folder, "") for folder in folders]))
    assert "top-1" not in words
    assert "loss over the epochs" in words


def test_sessions_without_labels_are_compared_by_label_free_figures(tmp_path, capsys):
    sessions = [make(tmp_path / name, accuracies=False) for name in "ab"]
    for number, session in enumerate(sessions):
        lines = [json.loads(line) for line in (session / "metrics.jsonl").read_text().splitlines()]
        for place, line in enumerate(lines):
            line.update(entropy=2.0 + number, neighbours_kept=0.5, neighbour_cosine=0.1 * place, clusters=None)
        lines[-1].update(clusters=[3, 2, 1 + number], linear_fc_top1=0.125, cluster_count=7)
        (session / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = Comparison([SessionRecord.read(session, "--compare") for session in sessions])
    results = {row[0]: row[1:] for row in comparison.results()[1]}
    assert results["entropy, last"] == ["2", "3"]
    assert results["kept their neighbour, last"] == ["50.00 %"] * 2
    assert results["clusters, last"] == ["3", "3"]
    assert results["linear, fc top-1"] == ["12.50 %"] * 2
    assert results["cluster, count"] == ["7", "7"]
    assert "mean entropy at the end of each round" in comparison.tables()
    assert main.main(["--compare", *map(str, sessions), "--compare-html", str(tmp_path / "c.html")]) == 0
    out = capsys.readouterr().out
    assert "mean cosine with the nearest over the epochs" in out
    assert "top-1 over" not in out


def test_curves_lie_over_each_other():
    plot = text_plot([[(1, 0.0), (2, 0.5), (3, 1.0)], [(1, 0.0), (3, 0.5)], []], percent=True).splitlines()
    assert plot[0].startswith("100.0 % |")
    assert plot[0].rstrip().endswith("A")
    assert plot[11].startswith("  0.0 % |*")  # both begin there
    assert [sum(line.count(mark) for line in plot[:12]) for mark in "AB*"] == [2, 1, 1]
    assert plot[-1].split() == ["1", "3", "epochs"]
    assert text_plot([[], []], percent=False) == ""
    assert "5" in text_plot([[(1, 5.0)]], percent=False)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    session = make(tmp_path / "s")
    with open(session / "metrics.jsonl", "a") as file:
        file.write('{"round": 2, "ep')
    assert len(SessionRecord.read(session, "").epochs) == 4


def test_the_page_keeps_the_rules_and_says_the_same(tmp_path, capsys):
    sessions = [make(tmp_path / "<i>a", final=0.5), make(tmp_path / "b$x^", rounds=3, done=3, protocol="nn")]
    arguments = ["--compare", *map(str, sessions), "--compare-html", str(tmp_path / "page.html")]
    assert main.main(arguments) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = check_rules(text)
    assert not page.all("i")
    assert "A <i>a: all 2 rounds completed" in page.text
    assert "Note: accuracies are not comparable: protocol differs." in page.text
    assert page.tables[1][1:] == tables_of(*sessions)["results"][1]
    figures = [attributes for attributes in page.all("svg") if attributes.get("class") == "figure"]
    assert len(figures) == 4  # accuracy, loss, learning rate, consistency
    assert text.count("stroke: var(--series-0)") >= 4
    assert text.count("stroke: var(--series-1)") >= 4


def test_the_default_page_never_replaces_anything(tmp_path, capsys):
    sessions = [str(make(tmp_path / name)) for name in "ab"]
    for expected in ("compare-a-b.html", "compare-a-b-2.html", "compare-a-b-3.html"):
        assert main.main(["--compare", *sessions, "--sess-dir", str(tmp_path)]) == 0
        assert f"as a page: {tmp_path / expected}\n" in capsys.readouterr().out


def test_a_named_page_replaces_a_comparison_and_says_so_but_nothing_else(tmp_path, capsys):
    sessions = [str(make(tmp_path / name)) for name in "ab"]
    page, other = tmp_path / "deep" / "page.html", tmp_path / "other.html"
    other.write_text("mine")
    assert main.main(["--compare", *sessions, "--compare-html", str(page)]) == 0
    assert "instead of" not in capsys.readouterr().out
    assert main.main(["--compare", *sessions, "--compare-html", str(page)]) == 0
    assert "(replaces the earlier comparison)" in capsys.readouterr().out
    assert main.main(["--compare", *sessions, "--compare-html", str(other)]) == 2
    assert other.read_text() == "mine"
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: --compare-html {other}: another file is there already; choose another path\n"


def test_two_sessions_of_one_name_are_told_apart(tmp_path):
    one, two = make(tmp_path / "x" / "s"), make(tmp_path / "y" / "s")
    assert Comparison([SessionRecord.read(folder, "") for folder in (one, two)]).labels == [str(one), str(two)]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "not a session: it has no config.yaml"),
        (lambda folder: (folder / "metrics.jsonl").write_text("{}\n"), "line 1 of {folder}/metrics.jsonl has no an"),
        (lambda folder: (folder / "metrics.jsonl").write_text("what?\n"), "metrics.jsonl, line 1: not a JSON object"),
        (lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n"), "line 1: not a JSON object"),
        (lambda folder: (folder / "final.json").write_text("[]"), "final.json: not what a run writes there"),
        (lambda folder: (folder / "config.yaml").write_text("max_round: many"), "max_round: expected a whole number"),
        (lambda folder: (folder / "config.yaml").write_text("- 1"), "must consist of `option: value` lines"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_session_is_an_error_of_one_line(tmp_path, capsys, spoil, expected):
    good, bad = make(tmp_path / "good"), make(tmp_path / "bad")
    spoil(bad)
    assert main.main(["--compare", str(good), str(bad), "--sess-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert expected.format(folder=bad) in err
    assert str(bad) in err


def test_mistakes_in_the_call_are_one_line(tmp_path, capsys):
    session = str(make(tmp_path / "s"))
    for arguments, expected in (
        (["--compare"], "expected the folders of two sessions or more"),
        (["--compare", session], "expected the folders of two sessions or more"),
        (["--compare", session, str(tmp_path / "none")], "there is no such folder"),
        (["--compare", session, session, "--session", "x"], "--compare trains nothing"),
    ):
        assert main.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert expected in err


def test_options_of_another_version_are_compared_as_text(tmp_path):
    one, two = make(tmp_path / "one", odd_option=1), make(tmp_path / "two", odd_option=2, batch_size="many")
    _, body = tables_of(one, two)["options and environment that differ"]
    assert body == [["batch_size", "128", "many"], ["odd_option", "1", "2"]]
