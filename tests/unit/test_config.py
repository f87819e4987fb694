"""Options: the order of their sources, parsing, errors and contradictions."""

import copy
import dataclasses
import pickle
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import OPTIONS, Options, Settings, collect, markdown, of_older_version, table, to_yaml
from lib.config.option import BOOL, CHOICE, FLOAT, INT, Bounds
from lib.config.parsing import LARGEST, MOST, SMALLEST
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {option.name: option for option in OPTIONS}


@pytest.fixture
def config(tmp_path):
    """Write a config file; returns its path."""

    def write(content, name="some.yaml"):
        path = tmp_path / name
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)
        return str(path)

    return write


def options_of(*argv):
    return collect(list(argv)).options


def refusal(argv, saved=None):
    """The error message of a call, None if the call is correct."""
    try:
        collect(argv, saved)
    except UserError as error:
        return str(error)
    return None


def mistake(*argv, saved=None):
    """The error message of a wrong call, which must be a single line."""
    with pytest.raises(UserError) as caught:
        collect(list(argv), saved)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the option table


def test_defaults_are_the_recipe_of_the_paper():
    options = options_of()
    assert (options.batch_size, options.base_lr, options.weight_decay) == (128, 0.03, 5e-4)
    assert (options.lr_policy, options.lr_decay_offset, options.lr_decay_step, options.lr_decay_rate) == (
        "step",
        80,
        40,
        0.1,
    )
    assert (options.npc_temperature, options.npc_momentum, options.low_dim) == (0.1, 0.5, 128)
    assert (options.select_rate, options.ANs_size, options.max_round, options.max_epoch) == (0.25, 1, 5, 200)
    assert (options.scale, options.ratio, options.colorjitter) == ((0.2, 1.0), (3 / 4, 4 / 3), (0.4,) * 4)
    assert (options.knn_k, options.sigma, options.protocol) == (200, 0.1, ("knn",))
    assert (options.nesterov, options.random_horizontal_flip, options.means) == (True, False, None)
    assert (options.network, options.gpus, options.resume, options.lr_schedule) == ("resnet18", "auto", None, ())


def test_option_definitions_are_consistent():
    assert len(BY_NAME) == len(OPTIONS) > 50
    for option in OPTIONS:
        assert option.name.replace("_", "").isalnum()
        assert option.help
        assert option.group
        assert not option.help.endswith(".")
        assert bool(option.choices) == (option.kind == CHOICE)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_defaults_are_values_of_their_options(option):
    # the way a checkpoint's values go checks type, range, choices and length
    if option.kept:
        value = option.default
        saved = {option.name: list(value) if isinstance(value, tuple) else value}
        assert getattr(collect([], saved).options, option.name) == value


def test_options_of_a_group_are_adjacent():
    groups = [option.group for option in OPTIONS]
    assert sorted(set(groups), key=groups.index) == [
        "general",
        "data",
        "network",
        "method",
        "optimisation",
        "evaluation",
        "using a network",
        "session",
        "devices",
    ]
    assert groups == sorted(groups, key=groups.index)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Bounds(low=1), (1, 2), (0,), "at least 1"),
        (Bounds(low=0, low_open=True), (1e-9,), (0, -1), "above 0"),
        (Bounds(0, 1), (0, 1, 0.5), (-0.1, 1.1), "at least 0 and at most 1"),
        (Bounds(0, 1, low_open=True), (1,), (0,), "above 0 and at most 1"),
        (Bounds(0, 1, high_open=True), (0,), (1,), "at least 0 and below 1"),
    ],
)
def test_bounds(bounds, inside, outside, words):
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)
    assert str(bounds) == words


# --- layers


def test_later_layers_win(config):
    first = config("batch_size: 4\nlow_dim: 1\nsize: 11\nseed: 1\n", "first.yaml")
    second = config("batch_size: 2\nlow_dim: 2\n", "second.yaml")
    saved = {"batch_size": 3, "size": 33, "knn_k": 33, "seed": 3, "max_round": 3}
    merged = collect(["--cfgs", first, second, "--batch-size", "4", "--seed", "4"], saved)
    names = ("batch_size", "seed", "low_dim", "size", "knn_k", "max_round", "max_epoch")
    assert [getattr(merged.options, name) for name in names] == [4, 4, 2, 11, 33, 3, 200]
    assert [merged.sources[name] for name in names] == [
        "command line",
        "command line",
        second,
        first,
        "checkpoint",
        "checkpoint",
        "default",
    ]
    assert set(merged.sources) == set(BY_NAME)
    assert merged.options.cfgs == (first, second)


def test_the_order_of_files_counts(config):
    one, two = config("seed: 1", "one.yaml"), config("seed: 2", "two.yaml")
    assert options_of("--cfgs", one, two).seed == 2
    assert options_of("--cfgs", two, one).seed == 1
    assert options_of("--cfgs", two, "--brief", "--cfgs", one).seed == 1


def test_the_last_of_an_option_given_twice_on_the_command_line_counts():
    assert options_of("--seed", "1", "--seed", "2").seed == 2
    assert options_of("--nesterov", "--no-nesterov").nesterov is False


def test_a_checkpoint_of_another_version_is_read():
    merged = collect([], {"no_longer_known": object(), "scale": [0.5, 1], "means": None})
    assert merged.options.scale == (0.5, 1.0)
    assert merged.sources["scale"] == merged.sources["means"] == "checkpoint"


def test_options_of_one_call_are_not_restored_from_a_checkpoint():
    saved = {"session": "old", "resume": "old", "restart": True, "test_only": True, "cfgs": ["old"], "print_args": True}
    assert collect([], saved) == collect([])


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"batch_size": "128"}, "batch_size: expected a whole number, at least 2, got '128'"),
        ({"batch_size": 2**31}, "batch_size: expected a whole number, at least 2, below 2147483648, got 2147483648"),
        ({"base_lr": 1e38}, "base_lr: expected a number, above 0, between 1e-30 and 1e+30 in size, got 1e+38"),
        ({"batch_size": True}, "batch_size: expected a whole number, at least 2, got True"),
        ({"batch_size": 1.0}, "batch_size: expected a whole number, at least 2, got 1.0"),
        ({"base_lr": float("nan")}, "base_lr: expected a number, above 0, got nan"),
        ({"nesterov": 1}, "nesterov: expected true or false, got 1"),
        ({"scale": 0.5}, "scale: expected 2 numbers, above 0 and at most 1, got 0.5"),
        ({"size": None}, "size: expected a whole number, at least 4, got null"),
        ({"gpus": 0}, "gpus: expected auto, cpu, or indices of GPUs such as 0 or 0,1, got 0"),
    ],
)
def test_wrong_values_in_a_checkpoint(saved, expected):
    assert mistake("--resume", "sessions/x", saved=saved) == f"checkpoint sessions/x: {expected}"


def test_options_that_are_no_mapping_in_a_checkpoint():
    assert mistake("--resume", "x", saved=[1]).startswith("checkpoint x: its options are not a mapping")


def test_a_resumed_run_is_checked_with_the_options_of_its_checkpoint():
    argv = ["--resume", "last", "--lr-policy", "multistep", "--momentum", "0"]
    assert collect(argv).options.resume == "last"  # what is needed to find the checkpoint
    assert collect(argv, {"lr_schedule": [10, 20], "nesterov": False}).options.lr_schedule == (10, 20)
    with pytest.raises(UserError, match="--lr-schedule"):
        collect(argv, {"nesterov": False})


# --- reading values

READINGS = [
    ("weight_decay", "5e-4", 0.0005),
    ("weight_decay", "5E-4", 0.0005),
    ("weight_decay", ".5", 0.5),
    ("weight_decay", "0", 0.0),
    ("base_lr", "3/100", 0.03),
    ("base_lr", "1", 1.0),
    ("batch_size", "64", 64),
    ("batch_size", "+64", 64),
    ("batch_size", "010", 10),
    ("scale", "(0.2, 1.)", (0.2, 1.0)),
    ("scale", "[0.2, 1]", (0.2, 1.0)),
    ("scale", "0.2, 1", (0.2, 1.0)),
    ("scale", "0.2 1", (0.2, 1.0)),
    ("ratio", "(3/4, 4/3)", (0.75, 4 / 3)),
    ("means", "-1 -5e-4 .5", (-1.0, -0.0005, 0.5)),
    ("means", "null", None),
    ("means", "None", None),
    ("lr_schedule", "(60,)", (60,)),
    ("lr_schedule", "[]", ()),
    ("lr_schedule", "120 160", (120, 160)),
    ("resize", "none", None),
    ("session", "2026", "2026"),
    ("session", "2026-11-23", "2026-11-23"),
    ("session", "1_000", "1_000"),
    ("session", "a b", "a b"),
    ("dataset", "CIFAR10", "cifar10"),
    ("network", "ResNet18", "resnet18"),
    ("gpus", "0", "0"),
    ("gpus", "0,1", "0,1"),
    ("data_root", "a, b", "a, b"),
    ("nesterov", "yes", True),
    ("nesterov", "False", False),
    ("nesterov", "no", False),
    ("nesterov", "on", True),
    ("knn_sigma", "Auto", "auto"),
    ("knn_sigma", "7/100", 0.07),
]


def same(value, wanted):
    return value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(("name", "text", "wanted"), READINGS)
def test_reading_from_yaml(config, name, text, wanted):
    path = config(f"{name}: {text}\n")
    assert same(getattr(options_of("--cfgs", path), name), wanted)


@pytest.mark.parametrize(("name", "text", "wanted"), READINGS)
def test_reading_from_the_command_line(name, text, wanted):
    flag = BY_NAME[name].flag
    assert same(getattr(options_of(flag, text), name), wanted)
    assert same(getattr(options_of(f"{flag}={text}"), name), wanted)
    if isinstance(wanted, tuple):
        assert same(getattr(options_of(flag, *text.split()), name), wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", None), ("~", None), ('"0.1 0.2 0.3"', (0.1, 0.2, 0.3)), ("\n- 1/2\n- 1\n- -2e0", (0.5, 1.0, -2.0))],
)
def test_reading_what_only_yaml_can_write(config, text, wanted):
    assert options_of("--cfgs", config(f"means: {text}\n")).means == wanted


def test_a_home_folder_is_found(monkeypatch, config):
    monkeypatch.setenv("HOME", "/home/someone")
    assert options_of("--data-root=~/images").data_root == "/home/someone/images"
    assert options_of("--cfgs", config("data_root: ~/images")).data_root == "/home/someone/images"


def test_config_files_with_nothing_marks_and_anchors(config):
    assert options_of("--cfgs", config("# nothing\n")) == options_of("--cfgs", config(""))
    assert options_of("--cfgs", config(b"\xef\xbb\xbfseed: 7\r\n")).seed == 7
    assert options_of("--cfgs", config("scale: &s [0.5, 0.5]\nratio: *s\n")).ratio == (0.5, 0.5)


def test_names_keep_their_case():
    assert options_of("--ANs-select-rate", "0.5", "--ANs-size=3").ANs_size == 3
    assert "did you mean --ANs-size?" in mistake("--ans-size", "3")


def test_an_empty_list_on_the_command_line():
    assert options_of("--lr-schedule").lr_schedule == ()


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option.kind == BOOL], ids=lambda option: option.name
)
def test_switches(option):
    base = ["--resume", "x"]
    assert getattr(options_of(*base, option.flag), option.name) is True
    assert getattr(options_of(*base, option.flag, "true"), option.name) is True
    assert getattr(options_of(*base, option.flag, "false"), option.name) is False
    assert getattr(options_of(*base, "--no-" + option.flag[2:]), option.name) is False


# --- mistakes on the command line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batchsize", "1"], "unknown option --batchsize on the command line; did you mean --batch-size?"),
        (["--batch_size", "1"], "unknown option --batch_size on the command line; did you mean --batch-size?"),
        (["--batch", "1"], "unknown option --batch on the command line; did you mean --batch-size?"),
        (["-batch-size", "1"], "unknown option -batch-size on the command line; did you mean --batch-size?"),
        (["--no-nestrov"], "unknown option --no-nestrov on the command line; did you mean --no-nesterov?"),
        (["--qqq=1"], "unknown option --qqq on the command line; --help lists the options"),
        (["--"], "unknown option -- on the command line; --help lists the options"),
        (["--a\nb"], "unknown option '--a\\nb' on the command line; --help lists the options"),
        (["a.yaml"], "a.yaml on the command line belongs to no option; config files follow --cfgs"),
        (["--no-brief", "x"], "x on the command line: --no-brief takes no value"),
        (["--no-brief=true"], "--no-brief=true on the command line: --no-brief takes no value"),
        (["--brief", "maybe"], "--brief on the command line: expected true or false, got 'maybe'"),
        (["--brief", "1"], "--brief on the command line: expected true or false, got '1'"),
        (["--brief="], "--brief on the command line: expected true or false, got nothing"),
        (["--cfgs"], "--cfgs on the command line: expected the paths of config files, got nothing"),
        (
            ["--seed"],
            "--seed on the command line: expected a whole number, at least 0 and below 4294967296, got nothing",
        ),
        (
            ["--seed", "4294967296"],
            "--seed on the command line: expected a whole number, at least 0 and below 4294967296, got '4294967296'",
        ),
        (["--low-dim", "1", "2"], "--low-dim on the command line: expected a whole number, at least 1, got '1', '2'"),
        (["--low-dim", "1.5"], "--low-dim on the command line: expected a whole number, at least 1, got '1.5'"),
        (["--low-dim", "1e2"], "--low-dim on the command line: expected a whole number, at least 1, got '1e2'"),
        (["--low-dim", "true"], "--low-dim on the command line: expected a whole number, at least 1, got 'true'"),
        (["--low-dim", "null"], "--low-dim on the command line: expected a whole number, at least 1, got 'null'"),
        (["--low-dim", "0"], "--low-dim on the command line: expected a whole number, at least 1, got '0'"),
        (["--base-lr", "-5e-4"], "--base-lr on the command line: expected a number, above 0, got '-5e-4'"),
        (["--base-lr", "abc"], "--base-lr on the command line: expected a number, above 0, got 'abc'"),
        (["--knn-sigma", "warm"], "--knn-sigma on the command line: expected a number, above 0, or auto, got 'warm'"),
        (["--base-lr", "auto"], "--base-lr on the command line: expected a number, above 0, got 'auto'"),
        (["--base-lr", "nan"], "--base-lr on the command line: expected a number, above 0, got 'nan'"),
        (["--base-lr", "inf"], "--base-lr on the command line: expected a number, above 0, got 'inf'"),
        (["--base-lr", "1e999"], "--base-lr on the command line: expected a number, above 0, got '1e999'"),
        (["--base-lr", "1/0"], "--base-lr on the command line: expected a number, above 0, got '1/0'"),
        (["--base-lr", "1/2/3"], "--base-lr on the command line: expected a number, above 0, got '1/2/3'"),
        (["--base-lr", "1/"], "--base-lr on the command line: expected a number, above 0, got '1/'"),
        (
            ["--scale", "0.2"],
            "--scale on the command line: expected 2 numbers, above 0 and at most 1, got '0.2'",
        ),
        (["--scale", "0", "1"], "--scale on the command line: expected 2 numbers, above 0 and at most 1, got '0 1'"),
        (
            ["--scale", "(0.2, 1"],
            "--scale on the command line: expected 2 numbers, above 0 and at most 1, got '(0.2, 1'",
        ),
        (["--means", "1", "2"], "--means on the command line: expected 3 numbers, or null, got '1 2'"),
        (
            ["--lr-schedule", "1", "2.5"],
            "--lr-schedule on the command line: expected whole numbers, at least 1, got '1 2.5'",
        ),
        (
            ["--dataset", "cifar"],
            "--dataset on the command line: expected one of digits, cifar10, cifar100, svhn, mnist, fashion-mnist, "
            "imagefolder, imagenet12, cub200, dogs, photos, got 'cifar'",
        ),
        (["--sess-dir", ""], "--sess-dir on the command line: expected a path, got nothing"),
        (["--session", "a/b"], "--session on the command line: expected a plain folder name, or null, got 'a/b'"),
        (["--session", ".."], "--session on the command line: expected a plain folder name, or null, got '..'"),
        (["--session", "."], "--session on the command line: expected a plain folder name, or null, got '.'"),
        (["--session", "a\n"], "--session on the command line: expected a plain folder name, or null, got 'a\\n'"),
        (
            ["--gpus", "gpu0"],
            "--gpus on the command line: expected auto, cpu, or indices of GPUs such as 0 or 0,1, got 'gpu0'",
        ),
    ],
)
def test_mistakes_on_the_command_line(argv, message):
    assert mistake(*argv) == message


def test_a_long_wrong_value_is_cut():
    message = mistake("--base-lr", "9" * 500 + "x")
    assert len(message) < 150
    assert message.endswith("...")


def test_session_names_with_dots_are_plain():
    assert options_of("--session", "..a").session == "..a"
    assert options_of("--session", "...").session == "..."


# --- mistakes in config files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# x\n\nbatchsize: 1\n", ", line 3: unknown option batchsize; did you mean batch_size?"),
        ("batch-size: 1\n", ", line 1: unknown option batch-size; did you mean batch_size?"),
        ("ans_size: 1\n", ", line 1: unknown option ans_size; did you mean ANs_size?"),
        ('"q\\nq": 1\n', ", line 1: unknown option 'q\\nq'; --help lists the options"),
        ('"": 1\n', ", line 1: unknown option ''; --help lists the options"),
        ("qqq: 1\n", ", line 1: unknown option qqq; --help lists the options"),
        ("seed: 1\nsize: 8\nseed: 2\n", ", line 3: seed is given a second time, first in line 1; remove one of them"),
        ("seed: 1\nlow_dim: abc\n", ", line 2: low_dim: expected a whole number, at least 1, got 'abc'"),
        ("low_dim: 1.5\n", ", line 1: low_dim: expected a whole number, at least 1, got '1.5'"),
        ("low_dim: true\n", ", line 1: low_dim: expected a whole number, at least 1, got 'true'"),
        ("low_dim:\n", ", line 1: low_dim: expected a whole number, at least 1, got null"),
        ("low_dim: [1]\n", ", line 1: low_dim: expected a whole number, at least 1, got '1'"),
        ("base_lr: .nan\n", ", line 1: base_lr: expected a number, above 0, got '.nan'"),
        ("base_lr: .inf\n", ", line 1: base_lr: expected a number, above 0, got '.inf'"),
        ("nesterov: 1\n", ", line 1: nesterov: expected true or false, got '1'"),
        ("scale: [0.2, 0.5, 1]\n", ", line 1: scale: expected 2 numbers, above 0 and at most 1, got '0.2', '0.5', '1'"),
        (
            "dataset: stl10\n",
            ", line 1: dataset: expected one of digits, cifar10, cifar100, svhn, mnist, fashion-mnist, imagefolder, "
            "imagenet12, cub200, dogs, photos, got 'stl10'",
        ),
        ("cfgs: [a.yaml]\n", ", line 1: a config file cannot name others; list them after --cfgs on the command line"),
        ("scale: [[1, 2]]\n", ", line 1: scale: expected a value or a list of values, without nesting or tags"),
        ("scale: {a: 1}\n", ", line 1: scale: expected a value or a list of values, without nesting or tags"),
        ("scale: [0.2, ~]\n", ", line 1: scale: expected a value or a list of values, without nesting or tags"),
        ("scale: &s [*s]\n", ", line 1: scale: expected a value or a list of values, without nesting or tags"),
        (
            "seed: !!python/object/apply:os.getpid []\n",
            ", line 1: seed: expected a whole number, at least 0 and below 4294967296, got nothing",
        ),
        (
            "sess_dir: !!python/name:os.getpid x\n",
            ", line 1: sess_dir: expected a value or a list of values, without nesting or tags",
        ),
        ("[1, 2]: 3\n", ", line 1: the name of an option was expected"),
        ("- seed: 1\n", ": it must consist of `option: value` lines"),
        ("just text\n", ": it must consist of `option: value` lines"),
        ("seed: 1\n  size: [\n", ", line 2: not valid YAML: mapping values are not allowed here"),
        ("seed: 1\n---\nseed: 2\n", ", line 2: not valid YAML: but found another document"),
        ("seed: \x01\n", ": not valid YAML: special characters are not allowed"),
        ("[" * 3000, ": nested too deep; it must be `option: value` lines"),
        (b"seed: \xff\xfe\n", ": it is not UTF-8 text; is it a YAML file?"),
        (b'sess_dir: "a\\0b"\n', ", line 1: sess_dir: expected a path, got 'a\\x00b'"),
    ],
)
def test_mistakes_in_a_config_file(config, content, message):
    path = config(content)
    assert mistake("--cfgs", path) == f"config file {path}{message}"


def test_the_file_with_the_mistake_is_named(config):
    good, bad = config("seed: 1", "good.yaml"), config("sead: 1", "bad.yaml")
    assert mistake("--cfgs", good, bad) == f"config file {bad}, line 1: unknown option sead; did you mean seed?"


def test_a_missing_config_file(tmp_path):
    path = tmp_path / "none.yaml"
    assert mistake("--cfgs", str(path)) == f"config file {path}: there is no such file; check the path after --cfgs"


def test_a_folder_in_place_of_a_config_file(tmp_path):
    assert mistake("--cfgs", str(tmp_path)) == f"config file {tmp_path}: it is a folder; name a YAML file in it"


def test_a_config_path_below_a_file(config):
    path = config("seed: 1") + "/x"
    assert mistake("--cfgs", path) == f"config file {path}: it cannot be read: Not a directory"


# --- options that demand something of each other


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--scale 1 0.2", ["--scale 1.0 0.2"]),
        ("--ratio 4/3 3/4", ["--ratio"]),
        ("--colorjitter 0 0 0 0.6", ["--colorjitter", "hue", "0.6", "0.5"]),
        ("--size 32 --resize 31", ["--resize 31", "--size 32"]),
        ("--lr-policy multistep", ["--lr-policy multistep", "--lr-schedule"]),
        ("--lr-policy multistep --lr-schedule 160 120", ["--lr-schedule 160 120", "increase"]),
        ("--lr-policy multistep --lr-schedule 120 120", ["--lr-schedule 120 120", "increase"]),
        ("--momentum 0", ["--nesterov", "--momentum", "--no-nesterov"]),
        ("--dampening 0.1", ["--nesterov", "--dampening", "0.1"]),
        ("--first-round 1 --max-round 1", ["--first-round 1", "--max-round 1"]),
        ("--restart", ["--restart", "--resume"]),
        ("--test-only", ["--test-only", "--resume", "--pretrained"]),
        ("--export x", ["--export", "--resume", "--pretrained"]),
        ("--embed x", ["--embed", "--resume", "--pretrained"]),
    ],
)
def test_contradictions(argv, words):
    message = mistake(*argv.split())
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "argv",
    [
        "--scale 1 1",
        "--colorjitter 9 9 9 0.5",
        "--size 32 --resize 32",
        "--lr-policy multistep --lr-schedule 120 160",
        "--lr-schedule 160 120",
        "--momentum 0 --no-nesterov",
        "--momentum 0 --optimizer adam",
        "--dampening 0.1 --optimizer rmsprop",
        "--restart --resume x",
    ],
)
def test_combinations_that_are_allowed(argv):
    assert isinstance(collect(argv.split()), Settings)


# --- the merged options


def test_options_cannot_be_changed():
    options = options_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.batch_size = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.batchsize = 1
    with pytest.raises(AttributeError):
        _ = options.batchsize


def test_options_compare_copy_and_pickle():
    options = options_of("--scale", "0.5", "1")
    assert options == options_of("--scale=0.5, 1")
    assert options != options_of()
    assert copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options
    assert dataclasses.replace(Options(), scale=(0.5, 1.0)) == options


def test_as_dict_is_plain_and_without_what_belongs_to_one_call():
    values = options_of("--resume", "x", "--session", "y", "--lr-schedule", "1", "2").as_dict()
    left_out = {"cfgs", "print_args", "debug_errors", "resume", "restart", "test_only", "session", "download"}
    left_out |= {"report_only", "compare", "compare_html", "sess_dir"}
    left_out |= {"export", "embed", "output", "overwrite", "neighbours"}
    assert set(values) == set(BY_NAME) - left_out
    assert values["lr_schedule"] == [1, 2]
    assert values["scale"] == [0.2, 1.0]
    assert {type(value) for value in values.values()} <= {type(None), bool, int, float, str, list}


def test_a_checkpoint_restores_the_stored_options():
    before = options_of("--scale", "0.5", "1", "--means", "null", "--lr-schedule", "1", "2", "--gpus", "0")
    assert collect([], before.as_dict()).options == before


# --- written out


def test_to_yaml_reads_as_written():
    text = to_yaml(collect(["--weight-decay", "1e-5", "--gpus", "0", "--data-root", "null", "--session", "2026"]))
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    assert "# optimisation" in lines
    assert "weight_decay: 1.0e-05" in lines  # so other readers of YAML take it for a number
    assert "scale: [0.2, 1.0]" in lines
    assert "data_root: null" in lines
    assert 'gpus: "0"' in lines
    assert "nesterov: true" in lines
    assert '# session: "2026"' in lines


@pytest.mark.parametrize("path", ["a\nseed: 7", "a\x85seed: 7", "a\u2028seed: 7", "# x", "ä 中 😀"])
def test_to_yaml_shows_every_option_and_reads_back_those_of_the_run(config, path):
    argv = ["--cfgs", config("seed: 5"), "--sess-dir=" + path, "--resume=" + path, "--overwrite", "--export", "x",
            "--max-round", "3"]  # fmt: skip
    before = collect(argv, {})
    lines = to_yaml(before).split("\n")
    for option in OPTIONS:
        start = f"{option.name}: " if option.kept else f"# {option.name}: "
        assert sum(line.startswith(start) for line in lines) == 1, option.name
    assert f'# cfgs: ["{argv[1]}"]' in lines
    assert "# overwrite: true" in lines
    again = collect(["--cfgs", config(to_yaml(before), "again.yaml")])
    assert again.options.as_dict() == before.options.as_dict()
    assert (again.options.resume, again.options.export, again.options.seed) == (None, None, 5)


AWKWARD = [
    "2026",
    "null",
    "1:30",
    "yes",
    "a: b",
    "# x",
    "-",
    "ä 中 😀",
    "a\nb",
    "'\"\\",
    " x ",
    "5e-4",
    "x" * 300,
    "\udcff",
]


@pytest.mark.parametrize("path", AWKWARD)
def test_to_yaml_keeps_any_path(config, path):
    before = collect(["--data-root=" + path])
    assert before.options.data_root == (None if path == "null" else path)
    again = collect(["--cfgs", config(to_yaml(before))])
    assert again.options.as_dict() == before.options.as_dict()


def values_of(option):
    """Values a user could give an option, as Python has them."""
    bounds = option.bounds or Bounds()
    if option.kind == BOOL:
        one = st.booleans()
    elif option.kind == CHOICE:
        one = st.sampled_from(option.choices)
    elif option.kind == INT:
        high = MOST - 1 if bounds.high is None else bounds.high - 1 if bounds.high_open else bounds.high
        one = st.integers(1 - MOST if bounds.low is None else bounds.low, high)
    elif option.kind == FLOAT:
        one = st.floats(bounds.low, bounds.high, allow_nan=False, allow_infinity=False).filter(
            lambda value: value in bounds and (value == 0 or SMALLEST <= abs(value) <= LARGEST)
        )
        one = one | st.just("auto") if option.auto else one
    elif option.name == "gpus":
        one = st.sampled_from(["auto", "cpu", "0", "07", "0,1"])
    elif option.name == "num_clusters":
        one = st.sampled_from(["auto", "1", "10"])
    elif option.name == "threads":
        one = st.sampled_from(["auto", "1", "999"])
    elif option.name == "save_every":
        one = st.sampled_from(["1", "500 steps", "10min", "2 h"])
    else:
        one = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
            lambda text: not text.startswith("~") and text.strip().lower() not in ("null", "none")
        )
    if option.length is not None:
        limits = {"max_size": 5} if option.length == 0 else {"min_size": option.length, "max_size": option.length}
        one = st.lists(one, **limits)
    return st.none() | one if option.nullable else one


@settings(max_examples=80, deadline=None)
@given(st.fixed_dictionaries({}, optional={option.name: values_of(option) for option in OPTIONS if option.kept}))
def test_to_yaml_and_back(tmp_path_factory, values):
    message = refusal([], values)
    if message is not None:  # each value by itself is right, so it must be about two that disagree
        assert message.startswith("--")
        return
    before = collect([], values)
    path = tmp_path_factory.mktemp("round-trip") / "config.yaml"
    path.write_text(to_yaml(before), encoding="utf-8")
    again = collect(["--cfgs", str(path)])
    assert dataclasses.replace(again.options, cfgs=()) == before.options
    assert to_yaml(dataclasses.replace(again, options=before.options)) == to_yaml(before)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([option.flag for option in OPTIONS if option.name != "cfgs"]) | st.text(max_size=8), max_size=6
    )
)
def test_any_command_line_is_read_or_refused_in_one_line(argv):
    if {"-h", "--help"} & set(argv):
        return
    message = refusal(argv)
    assert message is None or (message and "\n" not in message)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet="sed: 1\n-[]{}&*!?|>'\"%@,#~", max_size=60).map(str.encode))
def test_any_config_file_is_read_or_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_bytes(content)
    message = refusal(["--cfgs", str(path)])
    assert message is None or (message.startswith(f"config file {path}") and "\n" not in message)


def test_the_table_shows_where_values_came_from(config):
    path = config("base_lr: 0.123456789\n")
    lines = table(collect(["--cfgs", path, "--no-nesterov"])).splitlines()
    rows = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    assert rows["option"] == ["value", "default", "unit", "from"]
    assert rows["base_lr"] == ["0.123456789", "0.03", "number", path]
    assert rows["nesterov"] == ["false", "true", "on/off", "command line"]
    assert rows["batch_size"] == ["128", "128", "images", "default"]
    assert set(BY_NAME) < set(rows)


def test_markdown_holds_every_option():
    text = markdown()
    for option in OPTIONS:
        assert text.count(f"\n| `{option.flag}` |") == 1
    assert "\n| `--batch-size` | `128` | images | images in a batch (at least 2) |\n" in text
    assert text.startswith("**general**\n\n| option | default | unit | what it does |\n|---|---|---|---|\n")
    assert {line.count(" | ") for line in text.splitlines() if line.startswith("| ")} == {3}


# --- help


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_help_fits_and_names_every_option(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stopped:
        collect(["--brief", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= min(max(columns, 80), 100)
    words = set(text.replace(",", " ").split())
    assert {option.flag for option in OPTIONS} <= words
    assert "--no-nesterov" in words
    joined = " ".join(text.split())
    assert "--batch-size N images in a batch [images; at least 2; default 128]" in joined
    assert (
        "[one of digits, cifar10, cifar100, svhn, mnist, fashion-mnist, imagefolder, imagenet12, cub200, dogs, photos; "
        "default cifar10]" in joined
    )


# --- the files that come with the project


def shipped(*names):
    return options_of("--cfgs", *(str(ROOT / "configs" / f"{name}.yaml") for name in names))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_read_and_open_with_their_command(path):
    assert isinstance(collect(["--cfgs", str(ROOT / "configs" / "base.yaml"), str(path)]), Settings)
    comment = [line for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if line.startswith("#")]
    commands = [line for line in comment if "python3 main.py --cfgs configs/base.yaml" in line]
    assert len(commands) == 1
    if path.stem != "base":
        assert f"configs/{path.name}" in commands[0]
    words = commands[0].split("main.py")[1].split()
    argv = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    assert isinstance(collect(argv), Settings)


def test_base_is_the_default_recipe():
    """base.yaml states the released select rate, which equals `auto` for its number of rounds."""
    base, defaults = shipped("base"), options_of()
    assert base.ANs_select_rate == base.select_rate == defaults.select_rate == 0.25
    assert {**base.as_dict(), "ANs_select_rate": "auto"} == defaults.as_dict()


@pytest.mark.parametrize(
    ("names", "sigma"),
    [(("cifar10",), 0.1), (("imagenet12",), 0.07), (("cub200",), 0.07), (("dogs",), 0.07), (("imagefolder",), 0.07)],
)
def test_knn_sigma_is_the_temperature_of_the_loss(names, sigma):
    assert shipped("base", *names).sigma == sigma
    assert options_of("--npc-temperature", "0.07", "--knn-sigma", "0.1").sigma == 0.1


@pytest.mark.parametrize(("rounds", "rate"), [(1, 1), (2, 1), (3, Fraction(1, 2)), (5, 0.25), (8, Fraction(1, 7))])
def test_auto_select_rate_makes_all_images_anchors_in_the_last_round(rounds, rate):
    assert options_of("--max-round", str(rounds)).select_rate == rate
    assert options_of("--max-round", str(rounds), "--ANs-select-rate", "0.3").select_rate == 0.3


def test_defaults_of_an_older_version():
    """Options of older checkpoints, and defaults for those they lack. AlexNet already had PyTorch's initialisation."""
    assert of_older_version({"network": "resnet18"})["init"] == of_older_version({})["init"] == "torchvision"
    assert of_older_version({"network": "AlexNet"})["init"] == "released"
    options = collect([], of_older_version({"npc_temperature": 0.07, "max_round": 9})).options
    assert (options.sigma, options.select_rate) == (0.1, 0.25)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_small_image_sets_differ_in_the_data_set_alone(name):
    assert shipped("base", name).as_dict() == dataclasses.replace(shipped("base"), dataset=name).as_dict()


def test_large_images():
    options = shipped("base", "imagefolder")
    assert (options.dataset, options.size, options.resize, options.random_horizontal_flip) == (
        "imagefolder",
        224,
        256,
        True,
    )
    assert (options.npc_temperature, options.weight_decay) == (0.07, 1e-4)


def test_alexnet_goes_on_top_of_a_data_set():
    options = shipped("base", "svhn", "alexnet")
    assert (options.dataset, options.network) == ("svhn", "alexnet")


def test_digits_need_no_download():
    options = shipped("base", "digits")
    assert (options.dataset, options.download) == ("digits", False)


def test_the_docs_have_the_current_options():
    from lib.config.__main__ import OPTIONS_PAGE, with_options

    text = OPTIONS_PAGE.read_text(encoding="utf-8")
    assert with_options(text) == text, "run python3 -m lib.config"


@pytest.mark.parametrize(
    ("words", "classes"),
    [
        (["golden retriever", "cat"], ("golden retriever", "cat")),
        (["dog, or cat", "a b"], ("dog, or cat", "a b")),
        (["cat", "dog"], ("cat", "dog")),
        (["cat,dog"], ("cat", "dog")),
        (["cat,", "dog"], ("cat", "dog")),
        (["[cat,", "dog]"], ("cat", "dog")),
        (["cat dog"], ("cat", "dog")),
    ],
)
def test_quotation_marks_hold_names_together_where_there_are_several(words, classes):
    assert collect(["--classes", *words]).options.classes == classes
