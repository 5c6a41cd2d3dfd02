"""Readers of outside bytes: whatever the bytes are, only errors of ours come out, within a bound on work."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsbdali.data.index import ImageIndex
from rsbdali.data.labels import read_class_map, read_labels
from rsbdali.data.sources.parquet import class_names
from rsbdali.data.sources.storage import FileInfo, LocalStorage
from rsbdali.data.sources.table import read_table
from rsbdali.data.sources.tar import TarSource
from rsbdali.data.text import MOST_LABEL, MOST_LINE_CHARS
from rsbdali.errors import DataError, RsbdaliError

fuzz = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
WORDS = st.sampled_from(
    [
        b"a.jpg",
        b"b 1.jpg",
        b"n01",
        b"n02",
        b"0",
        b"1",
        b"-1",
        b"nan",
        b"3.0",
        b"1.5",
        b"9" * 5000,
        b"2000000000",
        b'"',
        b",",
        b"\t",
        b";",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"path",
        b"label",
        b"class",
        b"img",
        b"target",
        b"\x0c",
        "²".encode(),
        b"\xed\xa0\x80",
    ]
)
TEXTS = st.one_of(st.lists(WORDS, max_size=40).map(b"".join), st.binary(max_size=200))


@fuzz
@given(data=TEXTS)
def test_label_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    try:
        label_N = read_labels(tmp_path / "labels.txt", ("a.jpg", "b 1.jpg"), ("n01", "n02"))
    except RsbdaliError:
        return
    assert set(label_N.tolist()) <= {0, 1}


@fuzz
@given(data=TEXTS, known=st.lists(st.sampled_from(["n01", "n02", "0"]), unique=True))
def test_class_map(data: bytes, known: list[str], tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_bytes(data)
    try:
        names = read_class_map(tmp_path / "map.txt", known)
    except RsbdaliError:
        return
    assert len(set(names)) == len(names) > 0


@fuzz
@given(data=TEXTS)
def test_table(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    try:
        rows = read_table(str(tmp_path / "t.csv"))
    except RsbdaliError:
        return
    assert all(row.label is None or 0 <= row.label <= MOST_LABEL for row in rows)


def small_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (
            ("a/1.jpg", b"x" * 600),
            ("a/1.cls", b"0"),
            ("a/" + "n" * 120 + ".jpg", b"y"),
            ("b.json", b'{"label": 1}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


GOOD_TAR = small_tar()


@fuzz
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 6000), st.sampled_from([b"\0", b"\xff", b"-0001000\0", b"\x80", b"L", b"S", b"7", b"x"])
        ),
        max_size=4,
    ),
    cut=st.integers(0, len(GOOD_TAR)),
    fix=st.booleans(),
)
def test_tar(changes: list[tuple[int, bytes]], cut: int, fix: bool, tmp_path: Path) -> None:
    data = bytearray(GOOD_TAR)
    for at, value in changes:
        data[at : at + len(value)] = value
    if fix:  # with right checksums the damage gets further than the first check
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    data = data[: len(data) - cut] if cut % 3 == 0 else data
    (tmp_path / "x.tar").write_bytes(data)
    source = TarSource("x.tar", LocalStorage(str(tmp_path)), [FileInfo("x.tar", len(data), "")])
    try:
        scan = source.scan(1, None)
    except RsbdaliError:
        return
    assert len(scan.columns["label_N"]) + len(scan.bad) <= len(data) // 512


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["info", "features", "label", "names", "0", "1", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@fuzz
@given(
    data=st.one_of(
        st.binary(max_size=60),
        JSON.map(lambda value: json.dumps(value).encode()),
        JSON.map(lambda value: json.dumps({"info": {"features": {"label": {"names": value}}}}).encode()),
    )
)
def test_parquet_metadata(data: bytes) -> None:
    schema = SimpleNamespace(metadata={b"huggingface": data})
    try:
        names = class_names(schema)
    except RsbdaliError:
        return
    assert all(isinstance(name, str) for name in names)


@pytest.mark.parametrize("reader", [read_table, read_class_map, lambda p: read_labels(p, ("a",), ("b",))])
def test_long_lines_and_pipes_are_refused(reader: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"a,1\n" + b"x" * (MOST_LINE_CHARS + 1))
    with pytest.raises(DataError, match="has a line of"):
        reader(tmp_path / "long")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no regular file"):
        reader(tmp_path / "pipe")


def test_deep_json_and_nested_tars_end(tmp_path: Path) -> None:
    out = b""
    for depth in range(12):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo(f"{depth}.tar" if out else "a.jpg")
            info.size = len(out)
            archive.addfile(info, io.BytesIO(out))
        out = buffer.getvalue()
    (tmp_path / "deep.tar").write_bytes(out)
    with pytest.raises(DataError, match="more than 3 deep"):
        ImageIndex.scan(tmp_path / "deep.tar")
    schema = SimpleNamespace(metadata={b"huggingface": b"[" * 100_000})
    with pytest.raises(DataError, match="not JSON"):
        class_names(schema)
