"""--export, --embed and the Python interface, on a folder of small pictures and on digits."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import main
import models
from datasets.pipeline import Pipeline
from lib.checkpoint import io as checkpoint
from lib.commands import evaluate
from lib.commands.embed import default_output
from lib.config import Options
from lib.errors import RunError, UserError
from lib.export import network_files
from lib.export.model import training_paths
from lib.export.result_folder import check_free, result_folder, write_table
from tests.helpers.authors_files import authors_checkpoint
from tests.helpers.runs import ROOT
from tests.helpers.runs import call as process_of
from tests.helpers.sessions import read_table

SIDE, DIM = 16, 16
STRANGE = (b"caf\xe9.png", b'say "a, b".png', b"two\nlines\r.png", "日本.png".encode(), b"=1+1.png")
RUN = [
    "--dataset", "imagefolder", "--network", "convnet", "--size", str(SIDE), "--low-dim", str(DIM), "--batch-size",
    "10", "--max-round", "1", "--max-epoch", "8", "--optimizer", "adam", "--base-lr", "0.001", "--scale", "0.5", "1",
    "--knn-k", "3", "--workers-num", "0", "--gpus", "cpu", "--precision", "fp32", "--no-log-tfb", "--no-report",
    "--brief",
]  # fmt: skip
DESCRIBED = ["--network", "convnet", "--size", SIDE, "--low-dim", DIM, "--normalise", "imagenet"]


def picture(path, level, rng, side=SIDE):
    pixels = rng.integers(level, level + 70, (side, side, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """train/ and test/ with two classes, and new/ with pictures at several depths; some names are strange."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name, level in (("bright", 180), ("dark", 10)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                picture(root / part / name / f"{number:02}.png", level, rng)
    for name in STRANGE:
        picture(os.path.join(os.fsencode(root / "train" / "dark"), name), 10, rng)
    (root / "new" / "deep er" / "still").mkdir(parents=True)
    for number in range(3):
        picture(root / "new" / f"{number}.png", 180, rng)
        picture(root / "new" / "deep er" / "still" / f"{number}.png", 10, rng, side=23)
    for name in STRANGE:
        (root / "new").joinpath(os.fsdecode(name)).write_bytes((root / "train" / "dark" / "00.png").read_bytes())
    (root / "new" / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def session(data, tmp_path_factory):
    base = tmp_path_factory.mktemp("sessions")
    assert main.main([*RUN, "--data-root", str(data), "--sess-dir", str(base), "--session", "s"]) == 0
    return base / "s"


@pytest.fixture(scope="module")
def exported(session, tmp_path_factory):
    """The folder that --export writes with all optional packages."""
    folder = tmp_path_factory.mktemp("exports") / "new" / "e"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        arguments = ["--resume", str(session), "--export", str(folder), "--neighbours", "4", "--num-clusters", "2"]
        assert main.main(arguments) == 0
    return folder, out.getvalue()


@pytest.fixture
def quick(monkeypatch):
    """Without ONNX, which takes seconds."""
    monkeypatch.setattr(network_files, "onnx_packages_missing", lambda: ("onnx", "onnxscript"))


def call(capsys, *arguments):
    assert main.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def error_of(capsys, *arguments):
    status = main.main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return status, err


def last_checkpoint(session):
    return session / "checkpoint" / "0000-00000.ckpt"


def network_of(folder):
    """The network, built from network.json and network.pt alone."""
    told = json.loads((folder / "network.json").read_text())
    network = models.build(told["network"], told["low_dim"], told["stem"], told["size"])
    network.load_state_dict(torch.load(folder / "network.pt"))
    return network.eval(), told


def by_hand(folder, paths):
    """Features by NumPy and the exported files; the pictures have the network's size, so nothing is scaled."""
    network, told = network_of(folder)
    batch = np.stack([np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in paths]) / 255
    batch = (batch - np.array(told["means"])) / np.array(told["stds"])
    with torch.no_grad():
        return network(torch.from_numpy(batch.transpose(0, 3, 1, 2)).float()).numpy()


def test_an_export_has_every_file(exported):
    folder, out = exported
    names = {
        "features.npy",
        "images.csv",
        "neighbours.npy",
        "distances.npy",
        "centres.npy",
        "network.pt",
        "network.json",
    }
    assert {path.name for path in folder.iterdir()} - {"network.onnx"} == names
    assert f"written to {folder}" in out
    assert [path.name for path in folder.parent.iterdir()] == ["e"]


def test_exported_features_are_the_networks(exported):
    folder, _ = exported
    features = np.load(folder / "features.npy")
    rows = read_table(folder / "images.csv")
    assert (features.shape, features.dtype) == ((len(rows), DIM), np.float32)
    assert np.linalg.norm(features, axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    assert features == pytest.approx(by_hand(folder, [row["path"] for row in rows]), abs=1e-5)


def test_exported_rows_name_every_image_even_those_that_are_not_utf_8(exported, data):
    rows = read_table(exported[0] / "images.csv")
    assert list(rows[0]) == ["row", "split", "path", "dataset_row", "label", "class", "cluster"]
    files = {part: sorted(map(str, (data / part).rglob("*.png"))) for part in ("train", "test")}
    assert [row["path"] for row in rows] == files["train"] + files["test"]
    assert [row["split"] for row in rows] == ["train"] * len(files["train"]) + ["test"] * len(files["test"])
    assert [int(row["row"]) for row in rows] == list(range(len(rows)))
    expected = [*range(len(files["train"])), *range(len(files["test"]))]
    assert [int(row["dataset_row"]) for row in rows] == expected
    for row in rows:
        assert row["class"] == Path(row["path"]).parent.name == ("bright", "dark")[int(row["label"])]
    kept = {os.path.basename(os.fsencode(row["path"])) for row in rows}
    assert set(STRANGE) <= kept


def test_exported_neighbours_are_the_nearest_training_images_itself_left_out(exported):
    folder, _ = exported
    features = np.load(folder / "features.npy").astype(np.float64)
    count = sum(row["split"] == "train" for row in read_table(folder / "images.csv"))
    neighbours, distances = np.load(folder / "neighbours.npy"), np.load(folder / "distances.npy")
    assert neighbours.shape == distances.shape == (len(features), 4)
    assert (neighbours.dtype, distances.dtype) == (np.int64, np.float32)
    cosines = features @ features[:count].T
    cosines[np.arange(count), np.arange(count)] = -np.inf
    best = -np.sort(-cosines, axis=1)[:, :4]
    assert np.take_along_axis(cosines, neighbours, 1) == pytest.approx(best, abs=1e-6)
    assert distances == pytest.approx(1 - best, abs=1e-6)
    assert (neighbours != np.arange(len(features))[:, None]).all()
    assert neighbours.max() < count
    assert all(len(set(row)) == 4 for row in neighbours.tolist())


def test_exported_clusters_are_those_of_the_nearest_centre(exported):
    folder, _ = exported
    rows, centres = read_table(folder / "images.csv"), np.load(folder / "centres.npy").astype(np.float64)
    assert centres.shape == (2, DIM)
    expected = (np.load(folder / "features.npy").astype(np.float64) @ centres.T).argmax(axis=1)
    assert [int(row["cluster"]) for row in rows] == expected.tolist()
    dark = [int(row["cluster"]) for row in rows if row["class"] == "dark"]
    bright = [int(row["cluster"]) for row in rows if row["class"] == "bright"]
    assert set(dark).isdisjoint(bright)  # the two kinds of pictures could not differ more


def test_network_json_is_complete(exported, session):
    told = json.loads((exported[0] / "network.json").read_text())
    assert (told["network"], told["low_dim"], told["stem"], told["size"], told["resize"]) == (
        "convnet", DIM, "small", SIDE, SIDE,
    )  # fmt: skip
    assert (told["means"], told["stds"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert told["source"]["file"] == str(last_checkpoint(session))
    assert (told["source"]["session"], told["source"]["round"], told["source"]["epoch"]) == ("s", 0, 8)
    assert told["source"]["rows"] == {"train": 29, "test": 8}
    assert told["versions"]["torch"] == torch.__version__
    assert len(told["preprocessing"]) == 5


def test_network_onnx_computes_the_same_for_any_number_of_images(exported):
    folder, out = exported
    if not (folder / "network.onnx").exists():
        assert "network.onnx left out; to get it too: pip install onnx" in out
        pytest.skip("onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(folder / "network.onnx"), providers=["CPUExecutionProvider"])
    network, _ = network_of(folder)
    for count in (1, 2, 7):
        images = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
        (features,) = session.run(["features"], {"images": images.numpy()})
        with torch.no_grad():
            assert features == pytest.approx(network(images).numpy(), abs=1e-5)


@pytest.mark.parametrize(("name", "stem", "size"), [("alexnet", "small", 20), ("alexnet", "large", 70)])
def test_networks_whose_pooling_does_not_divide_evenly(name, stem, size, tmp_path):
    torch.manual_seed(0)
    network = models.build(name, 8, stem, size).eval()
    images = torch.randn(2, 3, size, size)
    plain = network_files._with_plain_pooling(network, images)
    assert isinstance(plain.avgpool, network_files._MatrixPool)
    with torch.no_grad():
        assert plain(images).numpy() == pytest.approx(network(images).numpy(), abs=1e-6)
    if size == 20:
        note = network_files.write_onnx(network, size, tmp_path / "network.onnx")
        assert note.startswith(("network.onnx written", "network.onnx left out; to get it too: pip install onnx"))
        if "checked with onnxruntime" in note:  # and another network would have been noticed
            other = models.build(name, 8, stem, size).eval()
            assert network_files._difference(tmp_path / "network.onnx", other, images) > network_files.TOLERANCE


def test_without_onnx_the_rest_is_written_and_the_log_says_how_to_get_it(session, tmp_path, capsys, quick):
    out = call(capsys, "--resume", session, "--export", tmp_path / "e", "--num-clusters", "2")
    assert "network.onnx left out; to get it too: pip install onnx onnxscript" in out
    names = sorted(path.name for path in (tmp_path / "e").iterdir())
    assert "network.onnx" not in names
    assert "network.pt" in names


def test_an_array_data_set_has_row_numbers_in_place_of_paths(tmp_path, capsys, quick):
    run = ["--dataset", "digits", "--network", "convnet", "--size", "8", "--low-dim", "8", "--limit-train", "20",
           "--limit-test", "6", "--max-round", "1", "--max-epoch", "1", "--batch-size", "10", "--gpus", "cpu",
           "--no-log-tfb", "--no-report"]  # fmt: skip
    call(capsys, *run, "--sess-dir", tmp_path, "--session", "s")
    call(capsys, "--resume", tmp_path / "s", "--export", tmp_path / "e", "--neighbours", "19", "--num-clusters", "20")
    rows = read_table(tmp_path / "e" / "images.csv")
    assert {row["path"] for row in rows} == {""}
    from sklearn.datasets import load_digits

    truth = load_digits().target
    assert [int(row["label"]) for row in rows] == [truth[int(row["dataset_row"])] for row in rows]
    assert len({row["dataset_row"] for row in rows}) == 26
    assert np.load(tmp_path / "e" / "neighbours.npy").shape == (26, 19)
    status, err = error_of(capsys, "--resume", tmp_path / "s", "--export", tmp_path / "f", "--neighbours", "20")
    assert (status, "an image has only 19 other training images" in err) == (2, True)
    status, err = error_of(capsys, "--resume", tmp_path / "s", "--export", tmp_path / "f", "--num-clusters", "21")
    assert (status, "there are only 20 training images" in err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "s"]


def test_unlabelled_pictures_are_exported_without_labels(data, tmp_path, capsys, quick):
    (tmp_path / "d" / "train").mkdir(parents=True)
    for number, path in enumerate(sorted((data / "train").rglob("0*.png"))):
        (tmp_path / "d" / "train" / f"{number}.png").write_bytes(path.read_bytes())
    call(capsys, *RUN, "--data-root", tmp_path / "d", "--sess-dir", tmp_path, "--session", "s")
    call(capsys, "--resume", tmp_path / "s", "--export", tmp_path / "e")
    rows = read_table(tmp_path / "e" / "images.csv")
    assert {(row["split"], row["label"], row["class"]) for row in rows} == {("train", "", "")}
    assert rows[0]["path"] == str(tmp_path / "d" / "train" / "0.png")


def test_embedding_new_pictures(session, data, tmp_path, capsys, exported):
    out = call(capsys, "--resume", session, "--embed", data / "new", "--output", tmp_path / "out", "--no-brief",
               "--neighbours", "3", "--num-clusters", "2")  # fmt: skip
    assert "nearest    3 of 29 training images, named by their paths" in out
    rows = read_table(tmp_path / "out" / "images.csv")
    assert list(rows[0]) == ["row", "path", "cluster", "nearest_1", "similarity_1", "nearest_2", "similarity_2",
                             "nearest_3", "similarity_3"]  # fmt: skip
    assert [row["path"] for row in rows] == sorted(str(path) for path in (data / "new").rglob("*.png"))
    features = np.load(tmp_path / "out" / "features.npy")
    same_size = [number for number, row in enumerate(rows) if "deep er" not in row["path"]]
    expected = by_hand(exported[0], [rows[number]["path"] for number in same_size])
    assert features[same_size] == pytest.approx(expected, abs=1e-5)
    # the nearest are those of the bank in the checkpoint
    memory = checkpoint.load(last_checkpoint(session))["npc"]["memory"].double().numpy()
    cosines = features.astype(np.float64) @ memory.T
    neighbours, distances = np.load(tmp_path / "out" / "neighbours.npy"), np.load(tmp_path / "out" / "distances.npy")
    best = -np.sort(-cosines, axis=1)[:, :3]
    assert np.take_along_axis(cosines, neighbours, 1) == pytest.approx(best, abs=1e-6)
    assert distances == pytest.approx(1 - best, abs=1e-6)
    train = sorted(map(str, (data / "train").rglob("*.png")))
    for number, row in enumerate(rows):
        assert [row[f"nearest_{place}"] for place in (1, 2, 3)] == [train[other] for other in neighbours[number]]
        assert float(row["similarity_1"]) == pytest.approx(best[number, 0], abs=2e-6)
    # the clusters are those of --export
    centres = np.load(exported[0] / "centres.npy")
    assert [int(row["cluster"]) for row in rows] == (features @ centres.T).argmax(axis=1).tolist()


def test_embedding_without_the_training_images_names_rows(session, data, tmp_path, capsys):
    out = call(capsys, "--resume", session, "--embed", data / "new", "--output", tmp_path / "out", "--no-brief",
               "--data-root", tmp_path / "gone", "--neighbours", "2", "--num-clusters", "2")  # fmt: skip
    assert "named by their rows, since the data set is not available" in out
    rows = read_table(tmp_path / "out" / "images.csv")
    neighbours = np.load(tmp_path / "out" / "neighbours.npy")
    assert [[int(row["nearest_1"]), int(row["nearest_2"])] for row in rows] == neighbours.tolist()
    (tmp_path / "other" / "train").mkdir(parents=True)
    for name in "ab":
        picture(tmp_path / "other" / "train" / f"{name}.png", 10, np.random.default_rng(0))
    out = call(capsys, "--resume", session, "--embed", data / "new", "--output", tmp_path / "out2", "--no-brief",
               "--data-root", tmp_path / "other", "--num-clusters", "2")  # fmt: skip
    assert "the imagefolder images here are not those of the checkpoint" in out


def test_one_picture_is_embedded_into_the_session(session, data, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes((data / "new" / "0.png").read_bytes())
    out = call(capsys, "--resume", session, "--embed", tmp_path / "one", "--num-clusters", "2", "--precision", "bf16")
    assert f"written to {session / 'embedded' / 'one'}" in out
    assert np.load(session / "embedded" / "one" / "features.npy").shape == (1, DIM)
    status, err = error_of(capsys, "--resume", session, "--embed", tmp_path / "one")
    assert (status, "holds an earlier result; choose another, or add --overwrite" in err) == (2, True)
    call(capsys, "--resume", session, "--embed", tmp_path / "one", "--overwrite", "--num-clusters", "1")
    assert default_output(Path("a/x.ckpt"), "b/pictures/") == Path(os.path.abspath("a/embedded/pictures"))


def test_pictures_that_cannot_be_read(session, data, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "good.png").write_bytes((data / "new" / "0.png").read_bytes())
    (tmp_path / "new" / "bad.jpg").write_bytes(b"no picture")
    arguments = ["--resume", session, "--embed", tmp_path / "new", "--output", tmp_path / "out", "--num-clusters", "2"]
    status, err = error_of(capsys, *arguments)
    assert (status, "bad.jpg: not readable as an image" in err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    assert "1 of 2 new images cannot be read" in call(capsys, *arguments, "--skip-bad-images")
    assert [row["path"] for row in read_table(tmp_path / "out" / "images.csv")] == [str(tmp_path / "new" / "good.png")]


@pytest.fixture
def resnet(session, tmp_path):
    """The session's checkpoint with an untrained ResNet18: the authors' files hold no convnet."""
    saved = checkpoint.load(last_checkpoint(session))
    torch.manual_seed(0)
    network = models.build("resnet18", DIM, "small", SIDE).state_dict()
    path = tmp_path / "resnet18.ckpt"
    checkpoint.save({**saved, "net": network, "options": {**saved["options"], "network": "resnet18"}}, path)
    return path


def test_a_network_of_the_authors_is_embedded_and_exported(resnet, data, tmp_path, capsys, quick):
    saved = checkpoint.load(resnet)
    file = tmp_path / "authors.ckpt"
    torch.save(authors_checkpoint(saved["net"], saved["npc"]["memory"]), file)
    described = ["--size", SIDE, "--low-dim", DIM, "--normalise", "imagenet", "--precision", "fp32", "--gpus", "cpu",
                 "--num-clusters", "2"]  # fmt: skip
    call(capsys, "--pretrained", file, *described, "--embed", data / "new", "--output", tmp_path / "theirs")
    call(capsys, "--resume", resnet, "--embed", data / "new", "--output", tmp_path / "ours", "--num-clusters", "2")
    for name in ("features.npy", "neighbours.npy"):
        assert np.load(tmp_path / "theirs" / name) == pytest.approx(np.load(tmp_path / "ours" / name), abs=1e-5)
    test = ["--dataset", "imagefolder", "--data-root", data]
    call(capsys, "--pretrained", file, *described, *test, "--export", tmp_path / "e")
    call(capsys, "--pretrained", tmp_path / "e" / "network.pt", *test, "--gpus", "cpu", "--precision", "fp32",
         "--export", tmp_path / "again", "--num-clusters", "2")  # fmt: skip
    assert (np.load(tmp_path / "e" / "features.npy") == np.load(tmp_path / "again" / "features.npy")).all()


def test_a_file_without_a_bank_gives_only_features(session, data, tmp_path, capsys):
    torch.save(checkpoint.load(last_checkpoint(session))["net"], tmp_path / "w.pt")
    out = call(capsys, "--pretrained", tmp_path / "w.pt", *DESCRIBED, "--embed", data / "new", "--output",
               tmp_path / "out")  # fmt: skip
    assert "holds no memory bank of this network: no clusters and no nearest training images" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features.npy", "images.csv"]
    assert list(read_table(tmp_path / "out" / "images.csv")[0]) == ["row", "path"]


def test_a_network_without_its_last_layer_gives_reproducible_named_features(session, data, tmp_path, capsys):
    saved = checkpoint.load(last_checkpoint(session))
    net = {name: value for name, value in saved["net"].items() if not name.startswith("fc.")}
    torch.save({"net": net, "npc": {"memory": saved["npc"]["memory"]}}, tmp_path / "w.pt")
    for name in ("one", "two"):
        torch.manual_seed(len(name))
        torch.rand(3 if name == "one" else 4)
        out = call(capsys, "--pretrained", tmp_path / "w.pt", *DESCRIBED, "--embed", data / "new", "--output",
                   tmp_path / name, "--brief")  # fmt: skip
    assert (tmp_path / "one" / "features.npy").read_bytes() == (tmp_path / "two" / "features.npy").read_bytes()
    assert "the last layer (fc) is random: features are a random projection" in out
    assert "npc.memory is not used: its rows are not of this last layer" in out
    assert not (tmp_path / "one" / "neighbours.npy").exists()


def test_test_only_prepares_other_images_as_the_runs_own_and_writes_nothing(
    session, data, tmp_path, capsys, monkeypatch
):
    before = {path: path.read_bytes() for path in session.rglob("*") if path.is_file()}
    evaluating = ["--test-only", "--protocol", "cluster", "--num-clusters", "2"]
    other = ["--dataset", "photos", "--data-root", data / "new"]
    out = call(capsys, "--resume", session, *evaluating, *other)
    assert "trained on other images (imagefolder, 29) than these (photos, 11)" in out
    assert "nothing is written into its session" in out
    assert {path: path.read_bytes() for path in session.rglob("*") if path.is_file()} == before

    # statistics unlike those of any data set, as only the file knows them
    saved = checkpoint.load(last_checkpoint(session))
    dataset = {**saved["dataset"], "means": [0.9, 0.1, 0.3], "stds": [0.5, 2.0, 1.0]}
    checkpoint.save({**saved, "dataset": dataset}, tmp_path / "x.ckpt")
    used = []
    monkeypatch.setattr(evaluate, "print_results", lambda call, images, *rest: used.append((images.means, images.stds)))
    for more in ([], ["--normalise", "half"], ["--stds", "1", "1", "1"]):
        call(capsys, "--resume", tmp_path / "x.ckpt", *evaluating, *other, *more)
    assert used == [
        ((0.9, 0.1, 0.3), (0.5, 2.0, 1.0)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.9, 0.1, 0.3), (1.0, 1.0, 1.0)),
    ]


def test_sigterm_during_an_export_leaves_nothing_behind(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom lib.errors import Interrupted\n"
        "from lib.export.result_folder import result_folder\npath = Path(sys.argv[1])\n"
        "try:\n    with result_folder('--export', path, False) as folder:\n"
        "        (folder / 'features.npy').write_text('x')\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "except Interrupted as stop:\n    print(stop, stop.status)\n"
    )
    _, out, _ = process_of(tmp_path / "e", program=("-c", code))
    assert out == f"SIGTERM: stopped; nothing was written to {tmp_path / 'e'} 143\n"
    assert os.listdir(tmp_path) == []


def test_mistakes_are_one_line_and_leave_nothing(session, resnet, data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    before = sorted(str(path) for path in [*tmp_path.rglob("*"), *session.rglob("*")])
    embed, export = ["--resume", session, "--embed", data / "new"], ["--resume", session, "--export"]
    cases = [
        ([*export[:2], "--embed", tmp_path / "empty"], "the folder holds no pictures"),
        ([*export[:2], "--embed", tmp_path / "gone"], "there is no such folder of pictures"),
        ([*export[:2], "--embed", tmp_path / "file"], "it is a file; give a folder of pictures"),
        (["--embed", data / "new"], "--embed needs --resume with the checkpoint to use, or --pretrained"),
        (["--export", tmp_path / "x"], "--export needs --resume"),
        ([*embed, "--export", tmp_path / "x"], "--export and --embed are separate calls"),
        ([*embed, "--test-only"], "--test-only and --embed are separate calls"),
        ([*export, tmp_path / "x", "--output", tmp_path / "y"], "--output is the folder of --embed"),
        (["--resume", session, "--overwrite"], "--overwrite goes with --export or --embed"),
        ([*embed, "--output", tmp_path / "x", "--neighbours", "30"], "there are only 29 training images; lower it"),
        ([*embed, "--output", tmp_path / "x", "--num-clusters", "30"], "there are only 29 training images; lower it"),
        (
            ["--resume", resnet, *embed[2:], "--output", tmp_path / "x", "--network", "resnet34"],
            "describe: layer1.2.conv1.weight is not in the file, layer1.2.bn1.weight is not in the file, layer1.2.bn1",
        ),
        ([*embed, "--output", tmp_path / "x", "--low-dim", "8"], "holds another network than --network, --low-dim"),
        ([*export, tmp_path / "x", "--low-dim", "8"], "holds another network than --network, --low-dim"),
        (
            [*export, tmp_path / "x", "--limit-train", "20"],
            "trained on other images (imagefolder, 29) than these",
        ),
        (
            [*export, tmp_path / "x", "--dataset", "digits"],
            "trained on other images (imagefolder, 29) than these",
        ),
        ([*export, tmp_path / "mine"], "holds other things (diary.txt), which are not touched"),
        ([*export, tmp_path / "mine", "--overwrite"], "holds other things (diary.txt), which are not touched"),
        ([*export, tmp_path / "file"], "there is a file of that name"),
        (["--resume", data / "new" / "0.png", "--embed", data / "new"], "cannot be read"),
    ]
    for arguments, expected in cases:
        status, err = error_of(capsys, *arguments)
        assert status == 2, err
        assert expected in err, arguments
    assert sorted(str(path) for path in [*tmp_path.rglob("*"), *session.rglob("*")]) == before


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(session, tmp_path, capsys, monkeypatch, quick):
    call(capsys, "--resume", session, "--export", tmp_path / "e", "--num-clusters", "2")
    before = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.commands.export.write_table", full)
    status, err = error_of(
        capsys, "--resume", session, "--export", tmp_path / "e", "--overwrite", "--num-clusters", "2"
    )
    assert (status, "No space left on device" in err) == (1, True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_result_folder_is_replaced_atomically(tmp_path):
    final = tmp_path / "a" / "r"
    with result_folder("--export", final, False) as folder:
        (folder / "images.csv").write_text("1")
        assert not final.exists()
    assert (final / "images.csv").read_text() == "1"
    with contextlib.suppress(KeyboardInterrupt), result_folder("--export", final, True) as folder:
        (folder / "images.csv").write_text("2")
        raise KeyboardInterrupt
    assert (final / "images.csv").read_text() == "1"
    link = tmp_path / "link"
    link.symlink_to(final)
    with result_folder("--export", link, True) as folder:
        (folder / "images.csv").write_text("3")
    assert link.is_symlink()
    assert (final / "images.csv").read_text() == "3"
    assert [path.name for path in final.parent.iterdir()] == ["r"]
    with pytest.raises(RunError, match="could not be written"), result_folder("--export", tmp_path / "b", False):
        raise OSError("no")
    assert not (tmp_path / "b").exists()


def test_csv_tables_preserve_any_text(tmp_path):
    texts = ['"', ",", "\n", "\r", "\r\n", "a\udce9b", "日本", "", " x ", "007", "=1"]
    write_table(tmp_path / "t.csv", {"number": range(len(texts)), "text": texts})
    assert [(row["number"], row["text"]) for row in read_table(tmp_path / "t.csv")] == [
        (str(number), text) for number, text in enumerate(texts)
    ]
    assert b"a\xe9b" in (tmp_path / "t.csv").read_bytes()


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_python_entry_point_from_another_folder(session, exported, data, tmp_path, fresh):
    """A user's script in a process of its own, in another folder, with the project's folder on sys.path."""
    script = tmp_path / "use.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import and_discovery, torch
from PIL import Image

model = and_discovery.load({str(session)!r})
paths, features = model.folder({str(data / "new")!r})
similarities, rows = model.nearest(features, k=2)
one = model.features(paths[0])
assert torch.allclose(one, features[:1], atol=1e-5), "a path"
assert torch.allclose(model.features([Image.open(paths[0]), paths[1]]), features[:2], atol=1e-5), "pictures"
batch = torch.stack([model.preprocessing(Image.open(path).convert("RGB")) for path in paths[:3]])
assert torch.allclose(model.features(batch), features[:3], atol=1e-5), "a batch"
shared = and_discovery.load({str(exported[0])!r})
assert torch.allclose(shared.features(paths), features, atol=1e-5), "an exported folder"
assert len(shared.memory) == len(model.memory) == 29
assert model.features([]).shape == (0, {DIM})
for wrong in (lambda: model.nearest(features, 30), lambda: model.nearest(features[0]),
              lambda: model.nearest(features[:, :3].numpy()), lambda: model.features(batch.byte()),
              lambda: model.features(torch.zeros(1, 3, 9, 9)),
              lambda: and_discovery.load("nowhere"), lambda: model.folder("nowhere")):
    try:
        wrong()
    except and_discovery.UserError as error:
        print("error:", error)
torch.save((paths, features, similarities, rows), "found.pt")
"""
    )
    status, out, err = process_of(program=("use.py",), cwd=tmp_path, fresh=fresh)
    assert status == 0, err
    assert out.splitlines() == [
        "error: 30 nearest training images were asked for; there are 29",
        f"error: features of shape ({DIM},); (B, {DIM}) is needed",
        f"error: features of shape (11, 3); (B, {DIM}) is needed",
        "error: a batch of torch.uint8; this network takes float32, the output of `preprocessing`",
        f"error: a batch of shape (1, 3, 9, 9); this network takes (B, 3, {SIDE}, {SIDE})",
        "error: nowhere: there is no such session, checkpoint or exported folder",
        "error: nowhere: there is no such folder of pictures",
    ]
    paths, features, similarities, rows = torch.load(tmp_path / "found.pt")
    assert paths == sorted(str(path) for path in (data / "new").rglob("*.png"))
    memory = checkpoint.load(last_checkpoint(session))["npc"]["memory"]
    expected = (features.double() @ memory.double().t()).topk(2)
    assert torch.allclose(similarities.double(), expected.values, atol=1e-6)
    assert torch.equal(rows, expected.indices)


def test_folders_that_cannot_be_replaced_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
    with pytest.raises(UserError, match="a mounted folder cannot be replaced; name a new folder in it"):
        check_free("--export", tmp_path / "volume", False)
    check_free("--export", tmp_path / "volume" / "new" / "one", False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only disk
    with pytest.raises(UserError, match=f"nothing can be written into {tmp_path}; choose another folder"):
        check_free("--export", tmp_path / "a" / "b", False)


def test_training_images_chosen_by_a_table_of_labels_keep_their_names(data, tmp_path):
    pictures = sorted((data / "train").rglob("*.png"))[:4]
    table = tmp_path / "t.csv"
    table.write_text("".join(f"{path.relative_to(data)},{'ab'[row % 2]}\n" for row, path in enumerate(pictures)))
    options = Options(
        dataset="photos", data_root=str(data), labels=str(table), classes=("a", "b"), augment_on="workers"
    )
    split = datasets.load("photos", str(data), False, str(table))
    pipeline = Pipeline(split, options, torch.device("cpu"))
    paths, line = training_paths(options, pipeline.fingerprint, pipeline.contents)
    assert sorted(paths) == [str(path) for path in pictures], line
