"""Data behind fsspec URLs without a server: fsspec's memory and local file systems, and the hub's way of listing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from rsbdali import ImageIndex, create_loader
from rsbdali.data.sources import object_store
from rsbdali.errors import DataError

SMALL: dict[str, Any] = {"input_size": 24, "batch_size": 4, "is_training": True, "device": "cpu", "num_workers": 1}


class FakeHub(MemoryFileSystem):
    """As huggingface_hub's `HfFileSystem` lists: no leading slash, `blob_id` and no time."""

    protocol = "hf"
    store: dict[str, Any] = {}  # noqa: RUF012 - as fsspec's own class has it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("hf://"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        entries = super().ls(path, detail=True, **options)
        hub = [{k: v for k, v in {**e, "name": e["name"].lstrip("/")}.items() if k != "created"} for e in entries]
        return [{**e, "blob_id": f"{hash(e['name'])}"} for e in hub] if detail else [e["name"] for e in hub]


@pytest.fixture
def parquet(image_tree: Callable[..., Path], tmp_path: Path) -> Path:
    """The layout of the hub, written by Hugging Face's own library: DIR/data/train-….parquet."""
    root = image_tree(classes=3, per_class=6)
    files = sorted(root.rglob("*.JPEG"))
    classes = sorted(path.name for path in root.iterdir())
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    for shard in range(2):
        part = files[shard::2]
        rows = {
            "image": [{"bytes": p.read_bytes(), "path": p.name} for p in part],
            "label": [p.parent.name for p in part],
        }
        out = tmp_path / "hub" / "data" / f"train-{shard:05d}-of-00002.parquet"
        out.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(out))
    return tmp_path / "hub"


@pytest.fixture(params=["memory://datasets/user/flowers", "hf://datasets/user/flowers", "local://{}"])
def url(request: pytest.FixtureRequest, parquet: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same files, behind each kind of URL."""
    monkeypatch.setitem(_registry, "hf", FakeHub)
    location = request.param.format(parquet)
    if not location.startswith("local"):
        fs, folder = fsspec.core.url_to_fs(location)
        for path in parquet.rglob("*.parquet"):
            fs.pipe_file(f"{folder}/data/{path.name}", path.read_bytes())
    yield location
    MemoryFileSystem.store.clear()
    FakeHub.store.clear()


def test_batches_are_the_folders(url: str, parquet: Path) -> None:
    with create_loader(parquet.parent / "data", **SMALL) as folder:
        expected = [*folder, *folder]
    for location in (url, f"{url}/data/train-*.parquet"):
        with create_loader(location, **SMALL) as loader:
            found = list(loader)
            second = iter(loader)
            found.append(next(second))
            state = loader.state_dict()
        with create_loader(location, **SMALL) as resumed:
            resumed.load_state_dict(state)
            found += list(resumed)
        assert len(found) == len(expected) == 8
        for (images, labels), (their_images, their_labels) in zip(found, expected, strict=True):
            assert torch.equal(images, their_images)
            assert torch.equal(labels, their_labels)


def test_a_changed_file_is_indexed_again(url: str, parquet: Path) -> None:
    location = f"{url}/data/train-*.parquet"
    assert len(ImageIndex.load(location)) == 18
    fs, folder = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{folder}/data/train-00001-of-00002.parquet")
    assert len(ImageIndex.load(location)) == 9


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise ImportError("No module named 'huggingface_hub'")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(DataError, match="needs pip install huggingface_hub"):
        object_store.RemoteStorage("hf://datasets/user/flowers")
