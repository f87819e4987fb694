"""Weights of other origin: our checkpoints, the authors', state dicts, and files that are none of these."""

import json
import os
import pickle

import pytest
import torch
import torchvision
from torch.nn import functional as F

import main
import models
from lib import compat
from lib.checkpoint import io as checkpoint
from lib.config import Options
from lib.errors import UserError
from lib.pretrained import fitting, weights_file
from tests.helpers.authors_files import authors_checkpoint, python_2_texts, save_as_python_2

SIZE, DIM, IMAGES = 8, 16, 40
RUN = [
    "--dataset", "digits", "--size", str(SIZE), "--low-dim", str(DIM), "--limit-train", str(IMAGES), "--limit-test",
    "20", "--batch-size", "20", "--max-round", "1", "--max-epoch", "1", "--knn-k", "5", "--scale", "0.5", "1",
    "--precision", "fp32", "--gpus", "cpu", "--no-log-tfb", "--no-report", "--optimizer", "adam", "--base-lr",
    "0.001",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a tiny run of convnet, and its file. Its features tell one image from another."""
    base = tmp_path_factory.mktemp("trained")
    run = [*RUN, "--network", "convnet", "--max-epoch", "12", "--brief"]
    assert main.main([*run, "--sess-dir", str(base), "--session", "t"]) == 0
    file = base / "t" / "checkpoint" / "0000-00000.ckpt"
    return checkpoint.load(file), file


@pytest.fixture(scope="module")
def resnet(trained, tmp_path_factory):
    """A checkpoint of an untrained ResNet18, the network of the authors' files, whose bank holds its features."""
    torch.manual_seed(6)
    network = models.build("resnet18", DIM, "small", SIZE)
    features_of_digits(network.train())  # statistics of batch norm that are not those of the start
    memory = features_of_digits(network.eval())
    saved = trained[0]
    saved = {**saved, "net": network.state_dict(), "npc": {**saved["npc"], "memory": memory},
             "options": {**saved["options"], "network": "resnet18"}}  # fmt: skip
    file = tmp_path_factory.mktemp("resnet") / "0000-00000.ckpt"
    checkpoint.save(saved, file)
    return saved, file


def fresh(name="resnet18", dim=DIM, stem="small", size=SIZE):
    torch.manual_seed(5)
    return models.build(name, dim, stem, size)


def same_weights(network, saved):
    state = network.state_dict()
    return all(torch.equal(state[name], value) for name, value in saved.items() if "num_batches" not in name)


def test_the_hand_made_pickles_are_python_2s():
    assert python_2_texts("net")[:6] == b"\x80\x02U\x03ne"
    assert pickle.loads(python_2_texts("net"), encoding="utf-8") == "net"


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("flat", [False, True])
def test_the_authors_checkpoints_load_completely(resnet, tmp_path, prefix, flat):
    saved, _ = resnet
    path = tmp_path / "0003-30000.ckpt"
    torch.save(authors_checkpoint(saved["net"], saved["npc"]["memory"], prefix, flat), path)
    file = weights_file.read(path)
    network = fresh()
    found = fitting.load_matching(network, file)
    assert (found.misfits, found.missing) == ((), ())
    assert same_weights(network, saved["net"])
    assert torch.equal(file.memory, saved["npc"]["memory"])
    assert file.kind == "a checkpoint of the authors' code"
    assert set(file.unused) == {"npc.params", "optimizer", "ANs_discovery"}
    assert (file.about["round"], file.about["epoch"], file.about["acc"]) == (3, 199, 86.25)


def test_the_authors_bottleneck_network_loads_completely(tmp_path):
    theirs, ours = fresh("resnet50"), fresh("resnet50")
    torch.nn.init.normal_(theirs.fc.weight)
    torch.save(authors_checkpoint(theirs.state_dict(), torch.zeros(3, DIM)), tmp_path / "x.ckpt")
    assert fitting.load_matching(ours, weights_file.read(tmp_path / "x.ckpt")).missing == ()
    assert same_weights(ours, theirs.state_dict())


@pytest.mark.parametrize("way", ["torch's own", "ours for torch before 1.13"])
def test_files_of_python_2_are_read(resnet, tmp_path, monkeypatch, way):
    saved, _ = resnet
    path = tmp_path / "old.ckpt"
    save_as_python_2(authors_checkpoint(saved["net"], saved["npc"]["memory"]), path)
    if way != "torch's own":
        as_before_1_13(monkeypatch)
    file = weights_file.read(path)
    network = fresh()
    assert fitting.load_matching(network, file).missing == ()
    assert same_weights(network, saved["net"])
    assert torch.equal(file.memory, saved["npc"]["memory"])


def as_before_1_13(monkeypatch):
    monkeypatch.setattr(compat, "HAS_WEIGHTS_ONLY", False)
    keywords = {} if compat.TORCH_RELEASE < (1, 13) else {"weights_only": False}
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: original(*a, **{**k, **keywords}))


@pytest.mark.parametrize("key", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_load_from_any_wrapper(tmp_path, key, prefix):
    theirs, ours = fresh("convnet"), fresh("convnet")
    torch.nn.init.normal_(theirs.fc.weight)
    weights = {prefix + name: value for name, value in theirs.state_dict().items()}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "w.pt")
    file = weights_file.read(tmp_path / "w.pt")
    found = fitting.load_matching(ours, file)
    assert (file.kind, file.memory, found.misfits) == ("a state dict", None, ())
    assert same_weights(ours, theirs.state_dict())


def test_torchvisions_resnet_fits_but_for_its_last_layer_which_is_named(tmp_path):
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours, untouched = fresh(stem="large", size=64), fresh(stem="large", size=64)
    file = weights_file.read(tmp_path / "resnet18.pth")
    found = fitting.load_matching(ours, file)
    assert found.misfits == (
        f"fc.weight is 1000 x 512 in the file, {DIM} x 512 here",
        f"fc.bias is 1000 in the file, {DIM} here",
    )
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert torch.equal(ours.fc.weight, untouched.fc.weight)
    fitting.check_complete(found, file, "resnet18")  # of use for a new run, and as it is
    assert "does not fit: fc.weight is 1000 x 512 in the file, 16 x 512 here" in fitting.fit_lines(
        found, file, "resnet18"
    )


def test_a_network_with_more_than_a_random_last_layer_is_not_used_as_it_is(tmp_path):
    torch.save(fresh("resnet34").state_dict(), tmp_path / "w.pt")
    file = weights_file.read(tmp_path / "w.pt")
    found = fitting.load_matching(fresh("resnet18"), file)
    assert any("layer3.5.conv1.weight of the file is not in the network" in line for line in found.misfits)
    assert found.missing == ()  # all that resnet18 has is there, and more
    with pytest.raises(UserError, match="resnet18: layer1.2.conv1.weight of the file is not in the network"):
        fitting.check_complete(found, file, "resnet18")
    torch.save(fresh("resnet18").state_dict(), tmp_path / "w.pt")
    file = weights_file.read(tmp_path / "w.pt")
    found = fitting.load_matching(fresh("resnet34"), file)
    with pytest.raises(UserError, match=r"does not fit --network resnet34: layer1.2.conv1.weight is not in the file"):
        fitting.check_complete(found, file, "resnet34")


def test_a_description_without_three_means_is_an_error(tmp_path):
    torch.save(fresh("resnet18").state_dict(), tmp_path / "network.pt")
    described = {"network": "resnet18", "low_dim": DIM, "stem": "small", "size": SIZE, "resize": None}
    told = {**described, "shrink": None, "means": [0.5, 0.4, 0.3], "stds": [0.2, 0.2, 0.1]}
    (tmp_path / "network.json").write_text(json.dumps(told))
    assert weights_file.read(tmp_path / "network.pt").statistics == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    for means in ([0.5], [0.5, 0.4, 0.3, 0.2]):
        (tmp_path / "network.json").write_text(json.dumps({**told, "means": means}))
        with pytest.raises(UserError, match=r"network\.json beside it is not as --export writes it"):
            weights_file.read(tmp_path / "network.pt")


def test_files_that_hold_no_weights_are_named(tmp_path):
    path = tmp_path / "w.pt"
    with pytest.raises(UserError, match="there is no such file"):
        weights_file.read(path)
    for content, message in (
        ([1, 2], "it holds a list, not weights by name"),
        ({"epoch": 3, "acc": 1.0}, r"it holds no weights of a network \(but epoch, acc\)"),
        ({"net": {}}, "it holds no weights"),
        ({}, r"\(but nothing\)"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            weights_file.read(path)
    for junk in (b"", b"hello\n", b"\x89PNG\r\n" + bytes(range(256))):
        path.write_bytes(junk)
        with pytest.raises(UserError, match=r"cannot be read \(.+\); it is damaged or not a checkpoint"):
            weights_file.read(path)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"none of its 1 tensors \(conv1.weight, ...\) fits the network"):
        fitting.load_matching(fresh(), weights_file.read(path))


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("way", ["torch's own", "ours for torch before 1.13"])
@pytest.mark.parametrize("place", ["net", "npc", "acc"])
def test_nothing_in_a_file_of_weights_is_executed(tmp_path, monkeypatch, zipped, way, place):
    path, trap = tmp_path / "w.ckpt", tmp_path / "trap"
    state = authors_checkpoint({"fc.weight": torch.zeros(1)}, torch.zeros(2, 2))
    state[place] = Planted(trap) if place == "acc" else {"x": Planted(trap)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    if way != "torch's own":
        as_before_1_13(monkeypatch)
    with pytest.raises(UserError, match=r"the file contains \w+.mkdir, which is not plain data"):
        weights_file.read(path)
    assert not trap.exists()


def test_our_checkpoint_restores_its_network_and_statistics(trained):
    _, path = trained
    file = weights_file.read(path)
    assert file.kind == "a checkpoint of this project"
    layer = file.layer(with_statistics=True)
    assert layer == {
        "network": "convnet", "low_dim": DIM, "stem": "auto", "size": SIZE, "resize": None,
        "means": pytest.approx([0.3054] * 3), "stds": pytest.approx([0.376] * 3),
    }  # fmt: skip
    assert "means" not in file.layer(with_statistics=False)
    assert set(layer) <= set(Options().as_dict())


def log_of(capsys, *arguments):
    assert main.main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_new_run_loads_network_and_bank(trained, tmp_path, capsys):
    """Round 0 of the new run with a tiny learning rate, so that its network and bank do not change."""
    saved, path = trained
    still = ["--base-lr", "1e-30", "--weight-decay", "0", "--npc-momentum", "0.9999999", "--sess-dir", tmp_path]
    out = log_of(capsys, *RUN, *still, "--session", "ours", "--pretrained", path)
    assert "26 of its 26 tensors loaded into convnet" in out
    assert f"memory bank taken from the file ({IMAGES} rows)" in out
    new = checkpoint.load(tmp_path / "ours" / "checkpoint" / "0000-00000.ckpt")
    for name, value in saved["net"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(value, new["net"][name], atol=1e-6), name
    assert torch.allclose(saved["npc"]["memory"], new["npc"]["memory"], atol=1e-4)
    assert (new["round"], new["epoch"], new["options"]["pretrained"]) == (0, 1, str(path))
    # a resumed run goes on from its own checkpoint, not from the file it once started with
    assert "memory bank" not in log_of(capsys, "--resume", tmp_path / "ours", "--max-epoch", "2")


def test_a_bank_without_a_fingerprint_is_taken_if_it_is_of_these_images_in_this_order(
    trained, resnet, tmp_path, capsys
):
    path = tmp_path / "w.ckpt"
    run = [*RUN, "--sess-dir", tmp_path, "--pretrained", path]
    torch.save(authors_checkpoint(resnet[0]["net"], resnet[0]["npc"]["memory"]), path)
    assert f"memory bank taken from the file ({IMAGES} rows)" in log_of(capsys, *run, "--session", "authors")
    net, memory = trained[0]["net"], trained[0]["npc"]["memory"]
    for name, rows, expected in (
        ("same", memory, f"memory bank taken from the file ({IMAGES} rows)"),
        ("rolled", memory.roll(7, 0), "or to another order of them"),
        ("few", memory[:9], f"npc.memory is 9 x {DIM} in the file, {IMAGES} x {DIM} here"),
    ):
        torch.save({"net": net, "npc": {"memory": rows}}, path)
        assert expected in log_of(capsys, *run, "--network", "convnet", "--session", name)


def test_without_a_bank_the_networks_own_features_are_the_first_rows(trained, tmp_path, capsys):
    saved, _ = trained
    path = tmp_path / "w.pt"
    torch.save(saved["net"], path)
    still = ["--npc-momentum", "0.9999999", "--sess-dir", tmp_path, "--session", "s"]
    out = log_of(capsys, *RUN, *still, "--network", "convnet", "--pretrained", path)
    assert "memory bank filled with the network's features of the training images: the file has none" in out
    memory = checkpoint.load(tmp_path / "s" / "checkpoint" / "0000-00000.ckpt")["npc"]["memory"]
    network = fresh("convnet")
    network.load_state_dict(saved["net"])
    assert torch.allclose(memory, features_of_digits(network.eval()), atol=1e-4)


def features_of_digits(network):
    import datasets
    from datasets.image_set import limit

    images = limit(datasets.load("digits", None, False).train, IMAGES, 0)
    batch = (torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float() / 255 - 0.3054) / 0.3760
    with torch.no_grad():
        return F.normalize(network(batch), dim=1)


def test_the_log_names_a_file_that_fits_in_part_even_with_brief(tmp_path, capsys):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pt")
    out = log_of(capsys, *RUN, "--pretrained", tmp_path / "w.pt", "--sess-dir", tmp_path, "--brief")
    assert "does not fit: conv1.weight is 64 x 3 x 7 x 7 in the file, 64 x 3 x 3 x 3 here" in out
    assert "does not fit: fc.weight is 1000 x 512 in the file, 16 x 512 here" in out


def test_test_only_evaluates_a_pretrained_network_without_a_session(resnet, tmp_path, capsys):
    saved, path = resnet
    data = ["--dataset", "digits", "--limit-train", str(IMAGES), "--limit-test", "20", "--knn-k", "5", "--gpus", "cpu",
            "--precision", "fp32"]  # fmt: skip
    expected = log_of(capsys, "--resume", path, "--test-only").split(": ", 2)[2]
    torch.save(authors_checkpoint(saved["net"], saved["npc"]["memory"]), tmp_path / "a.ckpt")
    described = ["--size", SIZE, "--low-dim", DIM]
    assert log_of(capsys, *data, *described, "--pretrained", tmp_path / "a.ckpt", "--test-only").endswith(expected)
    assert log_of(capsys, *data, "--pretrained", path, "--test-only").endswith(expected)  # it describes itself
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_resume_evaluates_a_checkpoint_of_the_authors_code(resnet, tmp_path, capsys, zipped, prefix):
    """With the call of their README. The accuracies equal those of our checkpoint with the same weights."""
    saved, path = resnet
    expected = log_of(capsys, "--resume", path, "--test-only").split(": ", 2)[2]
    theirs = tmp_path / "a.ckpt"
    state = authors_checkpoint(saved["net"], saved["npc"]["memory"], prefix)
    if zipped:
        torch.save(state, theirs)
    else:
        save_as_python_2(state, theirs)
    out = log_of(capsys, *RUN, "--resume", theirs, "--test-only")
    assert out.startswith(f"{theirs}: a checkpoint of the authors' code; its network is used as with --pretrained\n")
    assert out.endswith(expected)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_resume_with_a_weights_file_suggests_pretrained(resnet, tmp_path, capsys):
    saved, _ = resnet
    path = tmp_path / "a.ckpt"
    save_as_python_2(authors_checkpoint(saved["net"], saved["npc"]["memory"]), path)
    for arguments, expected in (
        ([], f"it is a checkpoint of the authors' code, which holds no run that can be resumed; --pretrained {path} "
             "starts a new run from its weights, and --test-only evaluates them"),
        (["--report-only"], "which holds no run"),
        (["--test-only", "--pretrained", path], "give one of them"),
        (["--test-only", "--network", "resnet34"], "does not fit --network resnet34: layer1.2.conv1.weight is not"),
    ):  # fmt: skip
        assert main.main([*RUN, "--resume", str(path), *map(str, arguments)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert expected in err
    path.write_bytes(b"hello")
    assert main.main([*RUN, "--resume", str(path), "--test-only"]) == 2
    assert "damaged or not a checkpoint" in capsys.readouterr().err


def layer_list(net, wrapper, fc):
    """The state dict of our AlexNet with the names of an AlexNet made of two lists of layers."""
    places = {1: 0, 2: 4, 3: 8, 4: 11, 5: 14}  # of the convolutions; ReLUs, poolings and dropouts count too
    renamed = {}
    for name, value in net.items():
        stage, number, rest = name.split(".", 2) if name.count(".") == 2 else (*name.split("."), "")
        if stage.startswith("conv"):
            renamed[f"features.{wrapper}{places[int(stage[4:])] + int(number)}.{rest}"] = value
        elif stage == "hidden":
            renamed[f"classifier.{number}.{rest}"] = value
        else:
            renamed[f"{fc}.{number}"] = value
    return renamed


@pytest.mark.parametrize(("wrapper", "fc"), [("module.", "fc"), ("", "top_layer")])
def test_an_alexnet_of_listed_layers_loads_completely(tmp_path, wrapper, fc):
    theirs, ours = fresh("alexnet"), fresh("alexnet")
    torch.nn.init.normal_(theirs.fc.weight)
    net = layer_list(theirs.state_dict(), wrapper, fc)
    assert f"features.{wrapper}15.running_var" in net
    torch.save({"net": net, "npc": {"memory": torch.zeros(3, DIM)}}, tmp_path / "a.ckpt")
    file = weights_file.read(tmp_path / "a.ckpt")
    found = fitting.load_matching(ours, file)
    assert (found.misfits, found.foreign) == ((), ())
    assert same_weights(ours, theirs.state_dict())
    torch.save({**net, "classifier.2.running_mean": torch.zeros(4096)}, tmp_path / "b.pt")
    file = weights_file.read(tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"hidden.2.running_mean of the file is not in the network"):
        fitting.check_complete(fitting.load_matching(ours, file), file, "alexnet")


def test_mistakes_are_one_line(resnet, tmp_path, capsys):
    _, path = resnet
    for arguments, expected in (
        (["--pretrained", path, "--resume", path], "--pretrained starts a new run and --resume continues one"),
        (["--pretrained", tmp_path / "none.pt"], "there is no such file"),
        (["--pretrained", path, "--network", "alexnet", "--dataset", "digits", "--export", tmp_path / "e"],
         "none of its 122 tensors"),
        (["--pretrained", path, "--low-dim", "8", "--network", "resnet50", "--dataset", "digits", "--test-only"],
         "does not fit --network resnet50"),
    ):  # fmt: skip
        assert main.main([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert expected in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ((0.3054,) * 3, (0.3760,) * 3)),
        (["--normalise", "imagenet"], ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        (["--normalise", "half"], ((0.5,) * 3, (0.5,) * 3)),
        (["--normalise", "svhn", "--means", "0", "0", "0"], ((0.0,) * 3, (0.1201, 0.1231, 0.1052))),
    ],
)
def test_statistics_that_images_are_normalised_with(arguments, expected):
    import datasets
    from datasets.pipeline import Pipeline
    from lib.config import collect

    options = collect(["--dataset", "digits", "--size", "8", *arguments]).options
    pipeline = Pipeline(datasets.load("digits", None, False), options, torch.device("cpu"))
    assert (pipeline.means, pipeline.stds) == expected
    images, rows = next(iter(pipeline.test_batches()))
    plain = torch.from_numpy(pipeline.test.pixels[rows]).permute(0, 3, 1, 2).double() / 255
    means, stds = (torch.tensor(values, dtype=torch.float64)[None, :, None, None] for values in expected)
    assert torch.allclose(images.double(), (plain - means) / stds, atol=1e-5)


def test_names_of_statistics_are_those_of_the_option():
    from lib.config import OPTIONS
    from lib.config.registry import NORMALISATIONS

    (option,) = (option for option in OPTIONS if option.name == "normalise")
    assert set(option.choices) == set(NORMALISATIONS)


def test_files_with_unusable_values_are_named(tmp_path):
    net = fresh().state_dict()
    name = "layer1.0.conv1.weight"
    path = tmp_path / "x.pt"
    for value, message in (
        (torch.full_like(net[name], float("nan")), f"{name} holds numbers that are not finite"),
        # where torch has no safe loading of its own, ours knows no sparse tensors
        (net[name].to_sparse(), f"{name} is sparse or quantised|_rebuild_sparse_tensor, which is not plain data"),
    ):
        torch.save({**net, name: value}, path)
        with pytest.raises(UserError, match=message):
            weights_file.read(path)
    torch.save({"net": net, "npc": {"memory": torch.full((3, DIM), float("inf"))}}, path)
    with pytest.raises(UserError, match="npc.memory holds numbers that are not finite"):
        weights_file.read(path)
    for bank in (7, {"memory": torch.zeros(3)}, {"memory": torch.zeros(3, DIM, dtype=torch.int64)}):
        torch.save({"net": net, "npc": bank}, path)
        file = weights_file.read(path)
        assert file.memory is None
        assert any(word.startswith("npc") for word in file.unused)
    torch.save({**net, 3: net[name], name: net[name].long()}, path)  # a name that is none, and whole numbers
    found = fitting.load_matching(fresh(), weights_file.read(path))
    assert found.misfits == (f"{name} is 64 x 64 x 3 x 3 of int64 in the file, 64 x 64 x 3 x 3 here",)


def test_a_checkpoint_of_ours_that_was_changed_is_refused(trained, tmp_path):
    content = bytearray(trained[1].read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="is damaged: its content does not match its checksum"):
        weights_file.read(tmp_path / "x.ckpt")
