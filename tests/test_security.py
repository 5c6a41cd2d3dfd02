"""SECURITY.md's rules, held against the source and against a run without a network."""

import ast
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.common import TINY
from rsbdali.recipe import Recipe
from rsbdali.training.options import TrainOptions
from rsbdali.training.train import train

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("rsbdali", "pipelines", "recipes", "bench") for path in (ROOT / folder).glob("**/*.py")]

NEVER = {
    "yaml.load",
    "yaml.safe_load",  # but through rsbdali.bounded
    "yaml.unsafe_load",
    "yaml.full_load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "eval",
    "exec",
    "shelve.open",
    "joblib.load",
    "torch.hub.load",
    "urllib.request.urlopen",
    "urllib.request.urlretrieve",
    "socket.create_connection",
}
NEVER_METHODS = {"extract", "extractall", "load_state_dict_from_url"}
NETWORK = {"requests", "urllib.request", "urllib3", "http.client", "httpx", "ftplib", "smtplib", "xmlrpc"}
"""Modules that reach out. What a user asks for goes through fsspec and other packages, imported in functions."""


def findings(source: str) -> Iterator[str]:
    """What breaks a rule in one file, as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {what}" for what in _call(node))
            continue
        else:
            continue
        yield from (f"{node.lineno}: imports {name}" for name in names if name in NETWORK | NEVER)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in NEVER or name.rsplit(".", 1)[-1] in NEVER_METHODS:
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        yield "np.load without allow_pickle=False"
    if given.get("shell", "False") != "False":
        yield f"{name} by a shell"


def test_the_source_keeps_the_rules() -> None:
    assert len(SOURCES) > 100
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in SOURCES}
    assert [f"{path}:{finding}" for path, text in texts.items() for finding in findings(text)] == []


@pytest.mark.parametrize(
    "line",
    [
        "yaml.load(text)",
        "yaml.safe_load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
        "archive.extractall(folder)",
        "tarfile.open(p).extract(m)",
        "os.system(command)",
        "np.load(path)",
        "subprocess.run(command, shell=True)",
        "import requests",
        "from urllib.request import urlopen",
        "from pickle import loads",
        "import urllib.request as web",
        "eval(text)",
    ],
)
def test_what_breaks_a_rule_is_found(line: str) -> None:
    assert len(list(findings(line))) >= 1


def test_a_run_needs_no_network(
    image_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(self: socket.socket, address: Any) -> None:
        asked.append(address)
        raise OSError(f"no network in this test: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: refuse(socket.socket(), args))
    image_tree(classes=2, per_class=1, split="val")
    data = image_tree(classes=2, per_class=2).parent
    values = {**TINY, "epochs": 1, "global_batch_size": 4}
    recipe = Recipe.load("a3", {**values, "mix_groups": 1, "warmup_epochs": 0})
    train(TrainOptions(recipe=recipe, data=data, output=tmp_path / "output", device="cpu", workers=1))
    assert asked == []
