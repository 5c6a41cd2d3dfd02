"""Readers of what others may have written beside the data: recipes, files of a run, checkpoints.

Whatever the bytes are, only errors of ours come out, of one short line, within a bound on work.
"""

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from rsbdali import bounded
from rsbdali.bounded import NotPlain
from rsbdali.errors import RsbdaliError
from rsbdali.plan.randaugment import MOST, RandAugmentPolicy
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint_record import read_record
from rsbdali.runs.folder import RunFolder, read_args
from rsbdali.runs.loggers.run_ids import read_id
from rsbdali.runs.report.page import report
from rsbdali.runs.report.reading import read_runs
from rsbdali.runs.state import Identity, RunState
from rsbdali.tools.pack_shard import ShardJob
from rsbdali.training.save_interval import Interval
from rsbdali.training.validate import ValidateOptions, choose_recipe

fuzz = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
KEYS = st.sampled_from([*Recipe().to_dict(), "epoch", "kind", "step", "loss", "eval_top1", "x", "steps_per_epoch"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [0, 1, 2**31, 2**63, 10**400, -1, "epoch", "step", "none", "1e999", "2001-99-99", "../x", "\ud800"]
    ),
    st.floats(),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS | SCALARS.filter(lambda key: not isinstance(key, float)), inner, max_size=4)
    ),
    max_leaves=12,
)
SIGNS = (
    ": ",
    "- ",
    "? ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\n",
    "  ",
    "&a ",
    "*a",
    "!!int ",
    "!x ",
    "<<: ",
    "| \n",
    ">\n",
    '"',
    "'",
)
WORDS = ("lr", "epochs", "scale", "reported", "1:2:3", "0b_", "._", "~", "=", "null", "yes", "1e3", "2001-01-01")
RARE = (
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "#",
    "\t",
    "\\ud800",
    "\x85",
    "\ufeff",
    "[" * 50,
    "9" * 5000,
    "1" + ":1" * 3000,
)
YAML_WORDS = st.sampled_from((*SIGNS, *WORDS, *RARE))
YAML_TEXTS = st.one_of(
    st.lists(YAML_WORDS, max_size=30).map(lambda words: "".join(words).encode("utf-8", "surrogatepass")),
    st.dictionaries(KEYS, VALUES, max_size=4).map(lambda value: yaml.dump(value).encode("utf-8", "surrogatepass")),
    st.binary(max_size=100),
)
JSON_LINES = st.one_of(
    VALUES.map(lambda value: json.dumps(value, skipkeys=True).encode()),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["step", "epoch", 1]), "epoch": VALUES},
        optional={"step": VALUES, "loss": VALUES, "eval_top1": VALUES, "lr": VALUES, "images_per_s": VALUES},
    ).map(lambda value: json.dumps(value, skipkeys=True).encode()),
    st.sampled_from([b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"\xff", b"\0", b"epoch,train_loss", b"0,1,2,3,4,5"]),
    st.binary(max_size=40),
)
LOGS = st.lists(JSON_LINES, max_size=8).map(b"\n".join)


def short(error: Exception) -> None:
    """An error for people: one line, whatever was in the file."""
    assert "\n" not in str(error)
    assert len(str(error)) < 1200


@fuzz
@given(data=YAML_TEXTS)
def test_recipe_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(data)
    try:
        recipe = Recipe.load(str(tmp_path / "r.yaml"))
    except RsbdaliError as error:
        short(error)
        return
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


@fuzz
@given(key=KEYS, value=YAML_TEXTS | VALUES)
def test_recipe_override(key: str, value: Any) -> None:
    value = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    try:
        recipe = Recipe.load("a3", {key: value})
    except RsbdaliError as error:
        short(error)
        return
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@fuzz
@given(data=YAML_TEXTS, head=st.dictionaries(KEYS, st.text(max_size=9), max_size=3))
def test_args_and_report(data: bytes, head: dict[str, str], tmp_path: Path) -> None:
    RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    lines = "".join(f"# {key}: {value}\n" for key, value in head.items())
    (tmp_path / "args.yaml").write_bytes(lines.encode("utf-8", "surrogatepass") + data)
    try:
        facts, values = read_args(tmp_path)
        assert all(isinstance(key, str) for key in (*facts, *values))
        report(read_runs([tmp_path])).encode()
    except RsbdaliError as error:
        short(error)


@fuzz
@given(metrics=LOGS, summary=LOGS, bad=LOGS, epoch=st.integers(0, 3), step=st.integers(0, 3))
def test_logs_of_a_run(metrics: bytes, summary: bytes, bad: bytes, epoch: int, step: int, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(metrics)
    (tmp_path / "summary.csv").write_bytes(summary)
    (tmp_path / "bad_images.csv").write_bytes(bad)
    report(read_runs([tmp_path])).encode()
    RunFolder(tmp_path, epoch=epoch, step=step)
    (run,) = read_runs([tmp_path])
    assert not [note for note in run.notes if "damaged" in note]
    assert all(row["epoch"] < epoch for row in run.epochs)
    assert all((row["epoch"], row["step"]) <= (epoch, step) for row in run.steps)


@fuzz
@given(data=JSON_LINES)
def test_ids_and_records_of_shards(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "loggers.json").write_bytes(data)
    (tmp_path / "x.tar").touch()
    try:
        read_id(tmp_path, "wandb")
    except RsbdaliError as error:
        short(error)
    shard = SimpleNamespace(record_path=tmp_path / "loggers.json", path=tmp_path / "x.tar", made_from="no digest")
    assert ShardJob.find_record(shard) is None  # type: ignore[arg-type]


@fuzz
@given(
    text=st.lists(
        st.sampled_from(["rand", "-", "m", "n", "mstd", "mmax", "inc", "p", "inf", "9", "0.5", "²", "9" * 400])
    )
)
def test_policy(text: list[str]) -> None:
    try:
        policy = RandAugmentPolicy.parse("rand-" + "".join(text))
    except RsbdaliError as error:
        short(error)
        return
    assert policy is not None
    assert 1 <= policy.num_layers <= MOST


@fuzz
@given(text=st.lists(st.sampled_from(["steps", "s", "m", "h", "0", "9", ".", "-", "e", "inf", "nan", "²", "9" * 400])))
def test_interval(text: list[str]) -> None:
    try:
        Interval.parse("".join(text))
    except RsbdaliError as error:
        short(error)


class Tiny(nn.Module):
    """Few weights of the kinds that matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)


def tiny_state() -> RunState:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.norm(model.conv(torch.ones(2, 1, 2, 2))).sum().backward()
    optimizer.step()
    return RunState(
        model,
        optimizer,
        torch.amp.GradScaler("cpu", enabled=True),
        epoch=1,
        step=1,
        history={"checkpoint-0.pth.tar": 1.0},
    )


IDENTITY = Identity(Recipe(lr=0.1, weight_decay=0.01), ("a", "b"), 4, 3)
CONTENT = tiny_state().to_checkpoint(IDENTITY, 50.0)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in nested containers."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, entry in entries for place in places(entry, (*at, key))]


LEAVES = st.one_of(
    VALUES,
    st.sampled_from(
        [
            torch.ones(1),
            torch.ones(2, 1, 1, 1),
            torch.zeros(0),
            torch.eye(2).to_sparse(),
            torch.ones(1, 1).expand(9**9, 9**9),
        ]
    ),
    st.sampled_from(
        [CONTENT["state_dict"], {"state": {}, "param_groups": []}, [], {}, torch.Size([1]), 10**5000, "x" * 99_999]
    ),
)


@fuzz
@given(changes=st.lists(st.tuples(st.sampled_from(places(CONTENT)), LEAVES, st.booleans()), min_size=1, max_size=2))
def test_checkpoint_content(changes: list[tuple[tuple[Any, ...], Any, bool]]) -> None:
    content = copy.deepcopy(CONTENT)
    for (*way, last), value, drop in changes:
        holder: Any = content
        try:
            for key in way:
                holder = holder[key]
            if not isinstance(holder, dict | list):
                continue
            if drop and way[:2] != ["optimizer", "state"]:  # what an optimizer keeps of a weight, it alone knows
                del holder[last]
            else:
                holder[last] = value
        except (KeyError, IndexError, TypeError):  # the change before took the place away
            continue
    for read in (
        lambda: read_record(content, "x.pth"),
        lambda: checkpoint.load_weights(Tiny(), checkpoint.weights(content), "x.pth"),
        lambda: choose_recipe(ValidateOptions(data=Path(), checkpoint=Path("x.pth")), content),
    ):
        try:
            read()
        except RsbdaliError as error:
            short(error)
    state = tiny_state()
    try:
        state.restore(content, IDENTITY, Path("x.pth"))
    except RsbdaliError as error:
        short(error)
        return
    state.optimizer.step()  # what was taken can go on
    assert state.step <= 3
    assert state.history.keys() <= {"checkpoint-0.pth.tar"}


def saved(tmp_path: Path, *, as_zip: bool) -> bytes:
    torch.save(CONTENT, tmp_path / "good", _use_new_zipfile_serialization=as_zip)
    return (tmp_path / "good").read_bytes()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch's, of a damaged byte
@fuzz
@given(
    as_zip=st.booleans(),
    at=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([b"\0", b"\xff", b"R", b"(", b".", b"\x8a\xff", b"cos\nsystem\n"])),
        max_size=4,
    ),
    cut=st.floats(0, 1),
)
def test_checkpoint_bytes(as_zip: bool, at: list[tuple[float, bytes]], cut: float, tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path, as_zip=as_zip))
    for share, value in at:
        place = int(share * (len(data) - 1))
        data[place : place + len(value)] = value
    if cut < 0.5:
        del data[int(cut * len(data)) :]
    (tmp_path / "bad").write_bytes(data)
    for read in (checkpoint.read, checkpoint.read_verified):
        try:
            content = read(tmp_path / "bad")
        except RsbdaliError as error:
            short(error)
        else:
            assert isinstance(content, dict)


OPCODES = [
    pickle.MARK,
    pickle.EMPTY_DICT,
    pickle.EMPTY_LIST,
    pickle.APPEND,
    pickle.SETITEM,
    pickle.TUPLE1,
    pickle.REDUCE,
]
OPCODES += [
    pickle.BINPUT + b"\1",
    pickle.BINGET + b"\1",
    pickle.BININT1 + b"\x09",
    pickle.BINUNICODE + b"\1\0\0\0a",
    pickle.STOP,
]
OPCODES += [
    pickle.GLOBAL + b"builtins\nbytearray\n",
    pickle.GLOBAL + b"collections\nOrderedDict\n",
    pickle.BUILD,
    pickle.POP,
]
OPCODES += [
    pickle.GLOBAL + b"torch\nSize\n",
    pickle.LONG4 + b"\xff\xff\xff\x7f",
    pickle.BINPERSID,
    pickle.TUPLE,
    pickle.NONE,
]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@fuzz
@given(codes=st.lists(st.sampled_from(OPCODES), max_size=30))
def test_checkpoint_pickle(codes: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\x80\2" + b"".join(codes) + b".")
    try:
        checkpoint.read(tmp_path / "p")
    except RsbdaliError as error:
        short(error)


def test_bounds(tmp_path: Path) -> None:
    for text in ("- " * 21, "[" + "1," * 10_001 + "]", "a" * (bounded.MOST_YAML + 1)):
        with pytest.raises(NotPlain):
            bounded.parse_yaml(text)
    for data in (b"[" * 100_000, b"1" * 5000, b" " * (bounded.MOST_BYTES + 1)):
        with pytest.raises(NotPlain):
            bounded.parse_json(data)
    (tmp_path / "log").write_bytes(b"x" * (3 << 20) + b"\ny\n" + b"z" * bounded.MOST_BYTES)
    assert [len(line) for line in bounded.read_lines(tmp_path / "log")] == [
        bounded.MOST_BYTES + 1,
        2,
        bounded.MOST_BYTES,
    ]
    bomb = bounded.parse_yaml("[" * 19 + "]" * 19)
    assert len(bounded.shown(bomb)) <= bounded.MOST_SHOWN + 1
    assert bounded.shown(10**5000) == "a very long int"
