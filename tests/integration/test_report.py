"""report.html of a small run, parsed; its figures against metrics.jsonl and the checkpoints."""

import json
import os
import random
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import main
from datasets.image_set import ImageSet
from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import newest_by_round
from lib.clustering.clusters import choose_number, find_clusters
from lib.report import Report, pictures
from lib.report.feature_map import layout, map_section
from lib.report.galleries import Certainty, contact_sheets
from lib.report.page import _charts
from lib.report.pictures import Pictures
from lib.report.rounds import stability
from lib.report.template import TEMPLATES
from lib.session.folder import SessionFolder
from lib.session.records import SessionRecord
from tests.helpers import oracles
from tests.helpers.html_page import Page, check_rules
from tests.helpers.runs import TINY
from tests.helpers.sessions import make

SMALL = [*TINY, "--report", "--limit-train", "60", "--batch-size", "32", "--max-round", "3"]
PICTURES = ["--dataset", "imagefolder", "--network", "convnet", "--size", "16", "--max-epoch", "1",
            "--workers-num", "0", "--no-log-tfb", "--gpus", "cpu", "--knn-k", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def session(digits_session):
    return digits_session


@pytest.fixture(scope="module")
def text(session):
    return (session / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def report_of(folder):
    images = digits(60)
    return Report(SessionFolder(folder), images, images.fingerprint())


def digits(count):
    from datasets.image_set import limit
    from datasets.sources.digits import digits as load

    return limit(load(None, False).train, count, 0)


def test_the_page_is_one_file_that_keeps_the_rules(text):
    page = check_rules(text)
    assert [words for level, words in page.headings if level == 2] == [
        "What was run", "Results by round", "Neighbourhoods over the rounds", "Anchors and their neighbours",
        "Map of the features", "Clusters", "Most and least certain images", "Attention maps",
    ]  # fmt: skip
    assert len(page.all("nav")) == 1
    assert len(text) < 3e6


def test_the_report_shows_the_baselines(session, page):
    found = json.loads((session / "final.json").read_text())["baselines"]
    shown = ", ".join(f"{name} {100 * top1:.2f} %" for name, top1 in found.items())
    assert shown.startswith("pixels ")
    assert f"Without learning, by the same vote: {shown}." in page.text


def test_the_report_shows_the_options_of_the_run(session, page):
    start = json.loads((session / "starts.jsonl").read_text())
    for words in (start["command"], start["code"], start["device"], f"torch {torch.__version__}",
                  "digits: 60 training images, 30 test images; 10 classes", "convnet, 128 features"):  # fmt: skip
        assert words in page.text
    options = {row[0]: row[1] for row in page.tables[0][1:]}
    assert options["limit_train"] == "60"
    assert options["optimizer"] == "adam"
    assert "seed" not in options  # has its default
    everything = {row[0]: row[1] for row in page.tables[1][1:]}
    assert everything["seed"] == "0"
    assert len(everything) == len(SessionRecord.read(session, "").options)


def test_the_table_of_rounds_is_that_of_the_metrics(session, page):
    records = metrics_of(session)
    rows = page.tables["rounds"]
    assert rows[0] == ["round", "anchors", "consistent", "loss", "top-1, last", "best (epoch)", "time"]
    for number, row in enumerate(rows[1:]):
        own = [record for record in records if record["round"] == number]
        best = max(own, key=lambda record: record["knn_top1"])
        assert row[:2] == [str(number), str(own[-1]["anchors"])]
        assert row[2] == ("–" if number == 0 else f"{100 * own[-1]['consistency']:.2f} %")
        assert row[3] == f"{own[-1]['loss']:.3f}"
        assert row[4] == f"{100 * own[-1]['knn_top1']:.2f} %"
        assert row[5] == f"{100 * best['knn_top1']:.2f} % ({best['epoch']})"
    assert [[row[0], row[1], row[2], row[4]] for row in page.tables["epochs"][1:]] == [
        [str(r["round"]), str(r["epoch"]), f"{r['loss']:.3f}", f"{100 * r['knn_top1']:.2f} %"] for r in records
    ]
    final = json.loads((session / "final.json").read_text())
    assert f"the last network has top-1 {100 * final['top1']:.2f} %" in page.text


def test_pairs_are_those_of_the_checkpoints(session, page):
    labels = digits(60).labels
    rows = page.tables["pairs"]
    assert rows[0][:4] == ["round", "pairs", "consistent", "inconsistent"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"]
    for number, row in enumerate(rows[2:], 1):
        saved = checkpoint.load(newest_by_round(session)[number])
        found = saved["ANs_discovery"]
        pairs = [(a, n) for a, row_ in zip(found["anchor_indexes"], found["neighbours"]) for n in row_]
        equal = sum(int(labels[a] == labels[n]) for a, n in pairs)
        assert row[1:4] == [str(len(pairs)), str(equal), str(len(pairs) - equal)]
        assert equal / len(pairs) == pytest.approx(metrics_of(session)[2 * number]["consistency"])


def test_anchors_have_a_border_a_mark_and_a_text(session, text):
    section = text[text.index('id="anchors"') : text.index('id="map"')]
    labels = digits(60).labels
    found = checkpoint.load(newest_by_round(session)[2])["ANs_discovery"]
    neighbour_of = dict(zip(found["anchor_indexes"].tolist(), found["neighbours"][:, 0].tolist()))
    shown = re.findall(
        r'alt="Anchor: image (\d+), class (\d)".*?class="pic (same|other)"><img [^>]*'
        r'alt="Neighbour of (the same|another) class: image (\d+), class (\d)"[^>]*>'
        r'<span class="mark" aria-hidden="true">(.)</span>.*?([\d.]+)</li>',
        section, flags=re.S,
    )  # fmt: skip
    assert len(shown) == 18
    order = found["entropy"][found["anchor_indexes"]].tolist()
    assert order == sorted(order)
    assert [float(row[7]) for row in shown] == sorted(float(row[7]) for row in shown)
    for anchor, label, border, words, neighbour, other_label, mark, entropy in shown:
        anchor, neighbour = int(anchor), int(neighbour)
        assert neighbour_of[anchor] == neighbour
        assert (labels[anchor], labels[neighbour]) == (int(label), int(other_label))
        same = labels[anchor] == labels[neighbour]
        assert (border, words, mark) == (("same", "the same", "✓") if same else ("other", "another", "✗"))
        assert entropy == f"{found['entropy'][anchor]:.3f}"


def test_the_map_has_a_thumbnail_for_each_dot(text, page):
    points = json.loads(next(content for attributes, content in page.scripts if attributes.get("id") == "map-points"))
    assert len(points) == 60
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y, _ in points)
    images = digits(60)
    assert [words for _, _, words in points] == [f"image {i}, class {images.labels[i]}" for i in range(60)]
    box = next(attributes for attributes in page.all("div") if attributes.get("id") == "map-box")
    sheet = next(attributes["src"] for attributes in page.all("img") if attributes.get("id") == "map-sheet")
    picture = np.asarray(opened(sheet))
    assert picture.shape == (int(box["data-rows"]) * 8, int(box["data-columns"]) * 8, 3)
    for place in (0, 24, 25, 59):
        top, left = place // 25 * 8, place % 25 * 8
        assert np.array_equal(picture[top : top + 8, left : left + 8], images.pixels[place])


def opened(uri):
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_clusters_hold_every_image_once(page):
    sizes = [int(size) for size in re.findall(r"(\d+) images, cosine with the centre", page.text)]
    assert sum(sizes) == 60
    assert sizes == sorted(sizes, reverse=True)


def test_attention_has_a_picture_for_each_image_and_round(page):
    alts = [image["alt"] for image in page.all("img") if image["alt"].startswith("Attention map")]
    watched = [int((place + 0.5) * 10) for place in range(6)]
    assert alts == [f"Attention map of image {i} after round {r}" for i in watched for r in range(3)]


def test_a_run_that_is_stopped_has_a_report_of_its_rounds(tmp_path, monkeypatch, capsys):
    from lib.training.trainer import Trainer

    original = Trainer._start_round

    def stop_at_1(self, number):
        if number == 1:
            raise KeyboardInterrupt
        original(self, number)

    monkeypatch.setattr(Trainer, "_start_round", stop_at_1)
    assert main.main([*SMALL, "--sess-dir", str(tmp_path), "--session", "s"]) == 130
    page = check_rules((tmp_path / "s" / "report.html").read_text(encoding="utf-8"))
    assert "round 0 of 0 to 2, 2 of its 2 epochs completed. The run was unfinished when" in page.text
    assert "Round 0 has no anchors" in page.text
    assert len(page.tables["rounds"]) == 2
    assert sorted(path.name for path in (tmp_path / "s").glob("report*")) == ["report.html"]


def test_a_run_that_is_stopped_in_its_first_round_has_a_report(tmp_path, monkeypatch, capsys):
    from lib.training.trainer import Trainer

    original = Trainer._train_epoch

    def stop_in_the_second(self):
        if self.state.epoch == 1:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", stop_in_the_second)
    assert main.main([*SMALL, "--sess-dir", str(tmp_path), "--session", "s"]) == 130
    page = check_rules((tmp_path / "s" / "report.html").read_text(encoding="utf-8"))
    assert "round 0 of 0 to 2, 1 of its 2 epochs completed. The run was unfinished when" in page.text


def test_a_resumed_run_has_the_report_of_one_that_was_not_stopped(session, text, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(session, copy)
    assert main.main(["--resume", str(copy / "checkpoint" / "0000-00000.ckpt")]) == 0
    resumed = (copy / "report.html").read_text(encoding="utf-8")
    assert "1 time, last " in Page(resumed).text
    start, end = text.index('<section aria-labelledby="quality">'), text.index("<footer>")
    other = resumed[resumed.index('<section aria-labelledby="quality">') : resumed.index("<footer>")]
    assert other == text[start:end]


def test_report_only_writes_it_again_and_nothing_else(session, text, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(session, copy)
    (copy / "report.html").unlink()
    (copy / "starts.jsonl").unlink()  # as in a session of an older version
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main.main(["--resume", str(copy), "--report-only"]) == 0
    assert "report.html: written in" in capsys.readouterr().out
    again = (copy / "report.html").read_text(encoding="utf-8")
    assert "not recorded in this session" in check_rules(again).text
    assert (
        again[again.index('id="anchors"') : again.index("<footer>")]
        == (text[text.index('id="anchors"') : text.index("<footer>")])
    )
    (copy / "report.html").unlink()
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_a_session_of_an_older_version_is_measured_by_its_checkpoints(session, tmp_path):
    """Its metrics.jsonl lacks the label-free figures."""
    copy = tmp_path / "run"
    shutil.copytree(session, copy)
    dropped = ("entropy", "anchor_entropy", "neighbours_kept", "neighbour_cosine", "clusters")
    old = [{name: value for name, value in r.items() if name not in dropped} for r in metrics_of(copy)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in old))
    report_of(copy).write()
    page = check_rules((copy / "report.html").read_text(encoding="utf-8"))
    kept, cosines = [], []
    before = {}
    for path in newest_by_round(copy).values():
        saved = checkpoint.load(path)
        found, memory = saved["ANs_discovery"], saved["npc"]["memory"].numpy().astype(np.float64)
        now = dict(zip(found["anchor_indexes"].tolist(), found["neighbours"][:, 0].tolist()))
        both = before.keys() & now.keys()
        kept.append(f"{100 * np.mean([before[a] == now[a] for a in both]):.1f} %" if both else "–")
        cosines.append(f"{np.mean([memory[a] @ memory[n] for a, n in now.items()]):.3f}" if now else "–")
        before = now
    assert [row[4] for row in page.tables["pairs"][1:]] == kept
    assert [row[5] for row in page.tables["pairs"][1:]] == cosines


def test_mistakes_with_report_only_are_one_line(session, tmp_path, capsys):
    lone = tmp_path / "lone.ckpt"
    shutil.copy(session / "checkpoint" / "0000-00000.ckpt", lone)
    cases = [
        (["--report-only"], "--report-only needs --resume"),
        (["--report-only", "--resume", lone], "is not in a session's checkpoint folder"),
        (["--report-only", "--resume", session, "--limit-train", "50"], "belongs to 60 other training images"),
        (["--report-only", "--resume", session, "--seed", "7"], "use the --dataset, --data-root"),
    ]  # fmt: skip
    for arguments, expected in cases:
        assert main.main([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert expected in err


def test_a_report_that_fails_is_a_warning_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise ZeroDivisionError("a\nmistake")

    monkeypatch.setattr("lib.report.page.assemble", broken)
    arguments = [*SMALL, "--max-round", "2", "--max-epoch", "1", "--sess-dir", str(tmp_path), "--session", "s"]
    assert main.main([*arguments, "--brief"]) == 0
    out = capsys.readouterr().out
    assert out.count("report.html could not be written (ZeroDivisionError: a mistake); the run continues; --no") == 3
    assert len(metrics_of(tmp_path / "s")) == 2
    assert not (tmp_path / "s" / "report.html").exists()


def test_without_reports_nothing_is_written(tmp_path, capsys):
    arguments = [*SMALL, "--max-round", "1", "--max-epoch", "1", "--sess-dir", str(tmp_path), "--session", "s"]
    assert main.main([*arguments, "--no-report"]) == 0
    assert not (tmp_path / "s" / "report.html").exists()
    assert main.main([*arguments, "--debug"]) == 0


def test_a_failed_write_leaves_the_previous_report(session, text, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(session, copy)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        report_of(copy).write()
    monkeypatch.undo()
    assert (copy / "report.html").read_text(encoding="utf-8") == text
    assert sorted(path.name for path in copy.glob("report*")) == ["report.html"]


def test_the_report_changes_nothing_of_the_run(session, tmp_path):
    """A run draws the same random numbers with and without a report."""
    copy = tmp_path / "run"
    shutil.copytree(session, copy)
    torch.manual_seed(5)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.get_num_threads())
    report_of(copy).write()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2:] == (random.getstate(), torch.get_num_threads())


def test_later_rounds_do_not_open_earlier_checkpoints_again(session, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(session, copy)
    opened_files = []
    original = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path: opened_files.append(path.name) or original(path))
    report = report_of(copy)
    report.write()
    assert opened_files == ["0002-00030.ckpt", "0000-00000.ckpt", "0001-00015.ckpt"]
    opened_files.clear()
    report.write()
    assert opened_files == ["0002-00030.ckpt"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with malicious names of classes and files, and its session."""
    root = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    names = ["<img src=x onerror=alert(1)>", "';--&amp;\"$x^2$"]
    for label in names:
        folder = root / "data" / "train" / label
        folder.mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 255, (70 + number, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{number}"><script>alert(2)<.png')
    odd = os.fsencode(str(root / "data" / "train" / names[0])) + b"/\xff\xfe.png"
    Image.fromarray(pixels).save(os.fsdecode(odd))
    arguments = ["--data-root", str(root / "data"), "--batch-size", "8", "--max-round", "2", "--ANs-select-rate", "0.5"]
    assert main.main([*PICTURES, *arguments, "--sess-dir", str(root), "--session", "<b>s&t"]) == 0
    return root / "<b>s&t"


def test_hostile_names_stay_text(hostile):
    page = check_rules((hostile / "report.html").read_text(encoding="utf-8"))
    assert len(page.scripts) == 2
    assert not page.all("b")
    assert "<b>s&t" in page.headings[0][1]
    alts = [image["alt"] for image in page.all("img")]
    assert any('<img src=x onerror=alert(1)>/0"><script>alert(2)<.png' in alt for alt in alts)
    points = json.loads(next(content for attributes, content in page.scripts if attributes.get("id") == "map-points"))
    assert len(points) == 11
    assert any("class ';--&amp;\"$x^2$" in words for _, _, words in points)


def test_pictures_without_labels_have_a_report_without_accuracies(tmp_path, capsys):
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(12):
        level = 30 + 60 * (number % 3)
        Image.fromarray(rng.integers(level, level + 60, (90, 70, 3), dtype=np.uint8)).save(folder / f"{number:02}.jpg")
    arguments = ["--data-root", str(tmp_path / "data"), "--batch-size", "6", "--max-round", "3", "--ANs-size", "2",
                 "--ANs-select-rate", "0.25"]  # fmt: skip
    assert main.main([*PICTURES, *arguments, "--sess-dir", str(tmp_path), "--session", "s"]) == 0
    text = (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    page = check_rules(text)
    records = metrics_of(tmp_path / "s")
    assert [row[3] for row in page.tables["pairs"][1:]] == [f"{r['neighbour_cosine']:.3f}" for r in records]
    assert [row[2] for row in page.tables["pairs"][2:]] == [f"{100 * r['neighbours_kept']:.1f} %" for r in records[1:]]
    assert "no labels, so there are no accuracies" in page.text
    assert page.tables["rounds"][0] == ["round", "anchors", "loss", "time"]
    assert page.tables["pairs"][0][:4] == ["round", "pairs", "kept", "cosine"]
    assert [row[1] for row in page.tables["pairs"][1:]] == ["0", "6", "12"]
    assert 'class="pic same"' not in text
    assert "kNN accuracy" not in page.text
    assert "cluster 1" in page.text
    assert "00.jpg" in " ".join(image["alt"] for image in page.all("img"))


def test_pictures_that_are_all_alike_are_one_cluster_here_as_in_the_log(session):
    images = ImageSet(np.zeros((60, 8, 8, 3), np.uint8))
    memory = torch.nn.functional.normalize(torch.randn(60, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    sheets = contact_sheets(np.arange(60), memory, Pictures(images), find_clusters(memory, "auto", 0))
    assert (sheets.count, [cluster.size for cluster in sheets.shown]) == (1, [60])
    assert choose_number(memory, 0).clusters == 1
    assert choose_number(memory, 0).explanation in sheets.explanation


def test_the_report_shows_the_results_of_protocols(session, tmp_path):
    copy = shutil.copytree(session, tmp_path / "s")
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    found = {"linear_layer1_top1": 0.5, "cluster_nmi": 0.25, "cluster_count": 12, "nn_top5": 0.75}
    last = json.loads(lines[-1])
    lines[-1] = json.dumps({**last, **found})
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert main.main(["--resume", str(copy), "--report-only"]) == 0
    page = check_rules((copy / "report.html").read_text(encoding="utf-8"))
    assert page.tables["findings"][1:] == [
        ["rankme, embedding", f"{last['rankme_embedding']:.4g}"],
        ["linear, layer1 top-1", "50.00 %"],
        ["cluster, NMI", "0.25"],
        ["cluster, count", "12"],
        ["nn, top-5", "75.00 %"],
    ]


def test_a_checkpoint_less_session_says_so(session, tmp_path):
    from lib.errors import UserError

    shutil.copy(session / "config.yaml", tmp_path / "config.yaml")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        report_of(tmp_path).write()


def found_of(anchors, neighbours, size):
    from lib.method.neighbourhoods import Neighbourhoods

    if not anchors:
        return Neighbourhoods.none(size, 1, torch.device("cpu"))
    return Neighbourhoods.of(torch.tensor(anchors), torch.tensor(neighbours), torch.zeros(size), None)


def test_stability_by_hand():
    before = found_of([0, 1, 2], [[5, 6], [7, 8], [0, 1]], 9)
    after = found_of([2, 1, 3], [[1, 4], [8, 7], [0, 1]], 9)  # 2 keeps one of two, 1 keeps both, 3 is new
    assert stability(before, after) == pytest.approx(0.75)
    assert stability(before, found_of([5], [[1, 2]], 9)) is None


def test_entropies_of_a_sample_are_those_of_all_rows(monkeypatch):
    rng = np.random.default_rng(0)
    memory = rng.standard_normal((300, 8)).astype(np.float32)
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    monkeypatch.setattr("lib.report.galleries.LOGITS", 0)
    certainty = Certainty.measured(found_of([], [], 300), torch.from_numpy(memory), 0.1, 3)
    assert len(certainty.rows) == 256
    assert not certainty.whole
    expected = oracles.entropies(memory.astype(np.float64), 0.1)
    assert certainty.entropy.numpy() == pytest.approx(expected[certainty.rows.numpy()], rel=1e-4)


def test_the_layout_is_a_function_of_the_features_and_keeps_groups_together():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 16))
    labels = np.repeat(np.arange(3), 20)
    features = centres[labels] + 0.1 * rng.standard_normal((60, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    for count, expected in ((60, "t-SNE"), (20, "PCA")):
        rows = np.linspace(0, 59, count).astype(int)
        method, places = layout(features[rows])
        assert method == expected
        assert places.min() >= 0
        assert places.max() <= 1
        assert np.array_equal(places, layout(features[rows].copy())[1])
        distance = ((places[:, None] - places[None]) ** 2).sum(axis=2)
        np.fill_diagonal(distance, np.inf)
        assert np.array_equal(labels[rows][distance.argmin(axis=1)], labels[rows])
    assert layout(np.ones((2, 4)))[1].shape == (2, 2)


@pytest.mark.parametrize(("count", "wanted"), [(3, 6), (60, 6), (10**9, 600)])
def test_samples_are_bounded_and_ascending(count, wanted):
    rows = pictures.evenly(count, wanted)
    assert len(rows) == len(set(rows)) == min(count, wanted)
    assert rows == sorted(rows)
    assert 0 <= rows[0] <= rows[-1] < count


@pytest.mark.parametrize(("policy", "words"), [("cosine", "falls once over the run"), ("step", "restarts in every")])
def test_the_rate_is_explained_as_it_falls(tmp_path, policy, words):
    make(tmp_path / "s", lr_policy=policy)
    assert any(words in explained for _, _, explained in _charts(SessionRecord.read(tmp_path / "s", "--compare"), 50))


def test_one_tiny_picture_does_not_shrink_the_thumbnails_of_the_map(tmp_path):
    paths = []
    for number in range(6):
        paths.append(str(tmp_path / f"{number}.png"))
        side = 1 if number == 2 else 200
        Image.new("RGB", (side, side), (40 * number, 0, 0)).save(paths[-1])
    rows, features = np.arange(6), torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    found = map_section(rows, features, pictures.Pictures(ImageSet(paths)), np.zeros(6, dtype=int))
    assert min(opened(found.sheet).size) >= 40


def test_large_images_become_small_thumbnails():
    images = ImageSet(np.random.default_rng(0).integers(0, 255, (2, 300, 500, 3), dtype=np.uint8))
    shown = pictures.Pictures(images).picture(1)
    assert opened(shown.uri).size == (pictures.THUMBNAIL_SIDE, pictures.THUMBNAIL_SIDE)
    assert (shown.name, shown.label, shown.alt) == ("image 1", None, "image 1")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_contrast_with_their_background(scheme):
    """WCAG 2.1: 4.5 for text, 3 for parts of figures."""
    style = (TEMPLATES / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.S)[:2]
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
    for under in ("page", "panel"):
        for name in ("text", "muted", "link"):
            assert contrast(colours[name], colours[under]) >= 4.5, (name, under)
        for name in ("good", "bad", *(f"series-{number}" for number in range(10))):
            assert contrast(colours[name], colours[under]) >= 3, (name, under)
    for name in ("good", "bad"):
        assert contrast(colours["badge-text"], colours[name]) >= 4.5
