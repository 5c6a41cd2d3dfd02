"""Object stores: a real S3-compatible server here, with folders, shards and Parquet on it; one that fails."""

import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from helpers.jpegs import jpeg, pixels
from rsbdali.cli.main import cli
from rsbdali.data.index import ImageIndex
from rsbdali.data.sources import object_store
from rsbdali.data.sources.base import ByteRange, ReadRequest, StoredImage
from rsbdali.data.sources.read_ahead import AheadReader
from rsbdali.data.splits import find_split, load_indexes
from rsbdali.distributed.world import World
from rsbdali.errors import DataError, SourceError, UnreadableImage
from rsbdali.loader import TrainLoader
from rsbdali.pipelines.regions import RegionReader, fetch_ahead
from rsbdali.recipe import Recipe
from rsbdali.tools.pack import PackOptions, pack

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

ImageTree = Callable[..., Path]
SMALL = {"img_size": 32, "global_batch_size": 8, "mix_groups": 2, "aa": "rand-m6-mstd0.5-inc1"}


class Proxy:
    """Hands requests on to the server, but answers the first `failures` reads of objects by 503."""

    def __init__(self, target: str) -> None:
        self.failures, self.reads, self.bytes_read, self.lock = 0, 0, 0, threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with proxy.lock:
                    is_read = "Range" in self.headers
                    proxy.reads += is_read
                    fail = is_read and proxy.failures > 0
                    proxy.failures -= fail
                self.answer(*((503, {}, b"") if fail else self.ask()))

            do_HEAD = do_GET

            def ask(self) -> tuple[int, dict[str, str], bytes]:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                try:
                    with urlopen(Request(target + self.path, headers=headers, method=self.command)) as reply:
                        return reply.status, dict(reply.headers), reply.read()
                except HTTPError as error:
                    with error:
                        return error.code, dict(error.headers), error.read()

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for key in ("ETag", "Last-Modified", "Content-Type", "Content-Range"):
                    if key in headers:
                        self.send_header(key, headers[key])
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                    with proxy.lock:
                        proxy.bytes_read += len(body) * ("Range" in self.headers)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def proxy(endpoint: str) -> Iterator[Proxy]:
    made = Proxy(endpoint)
    yield made
    made.close()


@pytest.fixture
def bucket(endpoint: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator["Bucket"]:
    """An empty bucket; what is tested reaches it by the proxy, the test itself directly."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "RETRY_WAITS_S", (0.0, 0.0, 0.0))
    s3fs.S3FileSystem.clear_instance_cache()
    direct = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True, use_listings_cache=False)
    name = f"bucket{len(direct.ls(''))}"
    direct.mkdir(name)
    yield Bucket(direct, name)
    s3fs.S3FileSystem.clear_instance_cache()


class Bucket:
    def __init__(self, fs: Any, name: str) -> None:
        self.fs, self.name = fs, name

    def upload(self, folder: Path, prefix: str) -> str:
        for path in folder.rglob("*"):
            if path.is_file():
                self.fs.pipe_file(f"{self.name}/{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{self.name}/{prefix}"


def as_tar(root: Path, out: Path) -> Path:
    out.parent.mkdir()
    with tarfile.open(out, "w") as archive:
        for path in sorted(root.rglob("*.JPEG")):
            archive.add(path, str(path.relative_to(root)))
    return out


def batches(index: ImageIndex, decode: str = "cpu", **options: Any) -> list[torch.Tensor]:
    loader = TrainLoader(index, Recipe.load("a3", SMALL), device="cpu", decode=decode, num_threads=2, **options)
    try:
        return [batch.images for batch in loader]
    finally:
        loader.close()


def assert_same(found: ImageIndex, folder: ImageIndex) -> None:
    assert found.classes == folder.classes
    for name in ("label_N", "width_N", "height_N", "nbytes_N", "flags_N", "path_bytes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(folder, name))
    for ours, theirs in zip(batches(found), batches(folder), strict=True):
        assert torch.equal(ours, theirs)


def test_a_folder_of_objects_gives_the_folders_batches(bucket: Bucket, image_tree: ImageTree) -> None:
    root = image_tree(classes=3, per_class=5, odd=("cmyk", "png", "text"))
    url = bucket.upload(root, "set/train")
    assert find_split(url.removesuffix("/train"), "train") == Path(url)
    for given in (url, Path(url)):
        index = ImageIndex.load(given)
        assert_same(index, ImageIndex.load(root))
        assert index.path(0) == f"{url}/class0/0.JPEG"
        assert [(bad.path, bad.reason) for bad in index.bad] == [(f"{url}/class0/odd_text.JPEG", "not an image")]
    assert_same(ImageIndex.load(url, check=False), ImageIndex.load(root))
    bucket.fs.rm(f"{bucket.name}/set/train/class2/0.JPEG")
    assert len(ImageIndex.load(url)) == len(index) - 1


def test_tar_files_on_a_store(bucket: Bucket, image_tree: ImageTree, tmp_path: Path) -> None:
    root = image_tree(classes=3, per_class=5, odd=("cmyk",))
    url = bucket.upload(as_tar(root, tmp_path / "t" / "train-00.tar").parent, "set")
    index = ImageIndex.load(find_split(url, "train"))
    assert index.name == f"{url}/train-*.tar"
    assert_same(index, ImageIndex.load(root))
    for ours, theirs in zip(batches(index, "graph"), batches(ImageIndex.load(root), "graph"), strict=True):
        assert torch.equal(ours, theirs)


def test_seekable_images_are_fetched_in_part(bucket: Bucket, proxy: Proxy, tmp_path: Path) -> None:
    """What goes over the wire: with the header up to the end of the window's lines, in a request for each image."""
    for i in range(6):
        path = tmp_path / f"in/train/class{i % 2}/{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(240, 320, i))
    pack(PackOptions(tmp_path / "in", tmp_path / "packed", 1, seekable=True))
    index = ImageIndex.load(find_split(bucket.upload(tmp_path / "packed", "set"), "train"))
    sample_M, window_M4 = np.arange(6), np.array([[40, 100, 30, 50]] * 6, np.int32)
    before, bytes_before = proxy.reads, proxy.bytes_read
    fetch_ahead(index, sample_M, window_M4)
    images, inside_M4 = RegionReader().read(index, sample_M.tolist(), window_M4)
    nbytes = proxy.bytes_read - bytes_before
    assert proxy.reads - before == 6
    assert nbytes < 0.5 * index.nbytes_N.sum()
    for i, (y, x, h, w) in enumerate(inside_M4.tolist()):
        small_B = images[i]
        assert isinstance(small_B, np.ndarray), small_B
        whole_HWC, small_HWC = pixels(index.read_stored(i)), pixels(small_B.tobytes())
        np.testing.assert_array_equal(small_HWC[y : y + h, x : x + w], whole_HWC[40:70, 100:150])
    index.reader.close()


def test_parquet_on_a_store(bucket: Bucket, image_tree: ImageTree, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    root = image_tree(classes=2, per_class=8)
    paths = sorted(root.rglob("*.JPEG"))
    table = pyarrow.table(
        {
            "image": [{"bytes": p.read_bytes(), "path": str(p.relative_to(root))} for p in paths],
            "label": [int(p.parent.name[-1]) for p in paths],
        }
    )
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(table, tmp_path / "hub" / "data" / "train-0.parquet", row_group_size=3)
    index = ImageIndex.load(find_split(bucket.upload(tmp_path / "hub", "hub"), "train"), classes=("class0", "class1"))
    assert_same(index, ImageIndex.load(root))


def test_a_store_that_fails_now_and_then(bucket: Bucket, proxy: Proxy, image_tree: ImageTree) -> None:
    root = image_tree(classes=2, per_class=8)
    proxy.failures = 2
    index = ImageIndex.load(bucket.upload(root, "x"))
    proxy.failures = 3  # of one read or of several: each has four tries
    assert_same(index, ImageIndex.load(root))
    assert proxy.failures == 0


@pytest.mark.parametrize("decode", ["cpu", "graph"])
def test_a_store_that_is_down(bucket: Bucket, proxy: Proxy, image_tree: ImageTree, decode: str) -> None:
    index = ImageIndex.load(bucket.upload(image_tree(classes=2, per_class=8), "x"))
    proxy.failures = 1 << 30
    with pytest.raises(SourceError, match=rf"s3://{bucket.name}/x/class.*: the store fails, 4 tries"):
        batches(index, decode)


@pytest.mark.parametrize("decode", ["cpu", "graph"])
def test_an_object_that_vanishes_is_replaced(bucket: Bucket, image_tree: ImageTree, decode: str) -> None:
    index = ImageIndex.load(bucket.upload(image_tree(classes=2, per_class=8), "x"))
    bucket.fs.rm(f"{bucket.name}/x/class1/3.JPEG")
    named: dict[str, str] = {}
    assert len(batches(index, decode, on_bad=named.__setitem__)) == len(batches(index, decode)) == 4
    assert named == {f"s3://{bucket.name}/x/class1/3.JPEG": f"s3://{bucket.name}/x/class1/3.JPEG: no such object"}


def test_an_object_that_shrinks(bucket: Bucket, image_tree: ImageTree, tmp_path: Path) -> None:
    path = as_tar(image_tree(), tmp_path / "t" / "train.tar")
    index = ImageIndex.load(f"{bucket.upload(path.parent, 'x')}/train.tar")
    bucket.fs.pipe_file(f"{bucket.name}/x/train.tar", path.read_bytes()[: int(index.offset_N.max()) - 600])
    with pytest.raises(UnreadableImage, match="is shorter than it was"):
        index.read_bytes(int(index.offset_N.argmax()))


def test_what_is_not_there(bucket: Bucket) -> None:
    for url in (f"s3://{bucket.name}/nothing", "s3://no-such-bucket/x"):
        with pytest.raises(DataError, match="no such bucket or prefix"):
            ImageIndex.load(url)
    with pytest.raises(DataError, match="a table of paths is read from local files only"):
        ImageIndex.load(f"s3://{bucket.name}/train.csv")
    with pytest.raises(DataError, match="nosuch"):
        ImageIndex.load("nosuch://a/b")


class Counted:
    """A reader that notes what it reads."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def read(self, image: StoredImage) -> bytes:
        self.seen.append(image)
        return image.path.encode()

    def read_parts(self, image: StoredImage, parts: Sequence[ByteRange], out_B: np.ndarray) -> None:
        self.seen.append((image, *parts))
        out_B[:] = np.concatenate([np.arange(start, start + nbytes) for start, nbytes in parts])

    def fetch_ahead(self, requests: object) -> None:
        raise AssertionError("the reader below is not told")

    def close(self) -> None:
        pass


def test_reading_ahead() -> None:
    a, b, c = (StoredImage(name, -1, 0, 10) for name in "abc")
    below = Counted()
    reader = AheadReader(below, threads=1, held_bytes=25)
    reader.fetch_ahead(map(ReadRequest, (a, b)))
    reader.fetch_ahead([ReadRequest(b)])  # the next plan has it too
    assert [reader.read(image) for image in (b, a, b)] == [b"b", b"a", b"b"]
    assert below.seen == [a, b]  # once each, in the plan's order
    assert reader.read(c) == b"c"
    reader.fetch_ahead(map(ReadRequest, (a, b, c)))  # too much to be held: the oldest goes, read when asked for
    assert [reader.read(image) for image in (a, b, c)] == [b"a", b"b", b"c"]
    assert below.seen.count(c) == 2
    reader.close()
    assert not reader._fetches
    assert reader._held_bytes == 0


def test_parts_are_read_ahead() -> None:
    image, parts, others = StoredImage("a", -1, 0, 100), (ByteRange(0, 3), ByteRange(7, 2)), (ByteRange(0, 3),)
    below = Counted()
    reader = AheadReader(below, threads=1, held_bytes=6)
    reader.fetch_ahead([ReadRequest(image, parts)])
    assert reader._held_bytes == 5
    for wanted in (parts, others):  # the second is other than what was said, and is read when it is asked for
        found_B = np.zeros(sum(part.nbytes for part in wanted), np.uint8)
        reader.read_parts(image, wanted, found_B)
        assert found_B.tolist() == [0, 1, 2, 7, 8][: len(found_B)]
    assert reader.read(image) == b"a"
    assert below.seen == [(image, *parts), (image, *others), image]
    reader.fetch_ahead([ReadRequest(image, parts), ReadRequest(image, others)])
    assert list(reader._fetches) == [ReadRequest(image, others)]
    reader.close()
    assert reader._held_bytes == 0


def test_the_commands_take_a_url(bucket: Bucket, image_tree: ImageTree) -> None:
    """click makes `s3:/bucket` of `s3://bucket` (its type is a Path)."""
    image_tree(classes=2, per_class=3, split="val")
    url = bucket.upload(image_tree(classes=2, per_class=4).parent, "set")
    listed = CliRunner().invoke(cli, ["index", url])
    assert listed.exit_code == 0, listed.output
    assert f"{url}/train\n" in listed.output
    assert f"{url}/val\n" in listed.output
    train, val = load_indexes(Path(url), World.from_env())
    assert (len(train), len(val), val.classes) == (8, 6, train.classes)
    missing = CliRunner().invoke(cli, ["index", f"s3://{bucket.name}/nothing"])
    assert isinstance(missing.exception, DataError)
