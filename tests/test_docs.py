"""Every command in README.md and docs/ is run, or parsed by the real command line, or is listed here with a reason.

    ```bash blocks, and indented lines that begin with a program ─> RULES ─> run | parse | skip

A command that no rule knows fails, so that a new one is a decision.
"""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from helpers.common import TINY
from rsbdali.cli.main import cli
from rsbdali.recipe import Recipe
from rsbdali.training.model import create_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    "rsbdali",
    "torchrun",
    "python",
    "python3",
    "make",
    "pip",
    "pytest",
    "bash",
    "srun",
    "sbatch",
    "docker",
    "tensorboard",
}

SMALL = {
    **TINY,
    "crop_pct": 0.9,
    "epochs": 1,
    "global_batch_size": 8,
    "mix_groups": 1,
    "micro_batch_size": "none",
    "warmup_epochs": 0,
    "aug_repeats": 0,
    "log_interval": 1,
}
PLACES = {
    "IMAGENET": "data",
    "DATA": "data",
    "D": "data",
    "DIR": "data",
    "photographs": "data",
    "PHOTOGRAPHS": "data",
    "N": "1",
    "STEP": "1",
    "TREE": "data",
    "OUT": "out",
}

SOURCE_FOLDERS = ("rsbdali", "pipelines", "recipes", "bench", "examples", "tests")

OPERATORS = {"|", "||", "&&", "&", ";", ">", ">>", "2>&1", "<"}

How = Literal["run", "parse", "skip"]


@dataclass(frozen=True)
class Rule:
    """What becomes of commands that match: run here, parsed only, or skipped; the first rule that matches counts."""

    pattern: str
    how: How
    reason: str


RULES = (
    # other programs
    Rule(r"^(\.venv/bin/)?(pip|python3? -m (pip|venv|build))\b", "skip", "installs packages"),
    Rule(r"^make\b", "skip", "the Makefile's own work: installs, or runs these very tests"),
    Rule(r"^(python -m )?pytest\b", "skip", "these tests"),
    Rule(r"^bash bench/gpu\.sh", "skip", "minutes on a GPU; test_bench.py runs it in small"),
    Rule(r"^(tensorboard|wandb|mlflow) ", "skip", "another program, which serves until it is stopped"),
    Rule(r"^python -m timeit", "skip", "measures for minutes on a large data set"),
    Rule(r"^python -m rsbdali\.bench\.", "skip", "measures for minutes; test_bench.py runs it in small"),
    Rule(r"^uv ", "skip", "installs packages"),
    Rule(r"rsbdali completion", "parse", "test_first_hour.py prints each"),
    Rule(r"^(sbatch|docker|ulimit|scontrol|kubectl)\b", "skip", "a cluster's or a container's"),
    Rule(r"^(export|set|module|source|cd|trap|wait|if|fi|for|do|done) ?", "skip", "a line of a job script"),
    Rule(r"-m rsbdali\.integrations\.timm ", "skip", "training: test_integrations.py runs it"),
    Rule(r"^(python|torchrun .*) ?examples/", "skip", "training: test_examples.py runs each"),
    # ours, but not here
    Rule(r"\b(torchrun|srun)\b.*\brsbdali\b|--nproc\b", "parse", "processes of their own: test_distributed.py"),
    Rule(r"s3://|--endpoint", "parse", "a server: its tests start one"),
    Rule(r"--pretrained", "parse", "fetches weights from a network"),
    Rule(r"--demo\b|demo-data", "parse", "a minute of training: test_demo.py runs it"),
    Rule(r"--log (wandb|mlflow|tensorboard)", "parse", "test_loggers.py runs each"),
    Rule(r"--format onnx", "parse", "seconds of exporting: test_export.py runs it"),
    Rule(r"rsbdali bench-", "parse", "measures for minutes: test_bench.py and test_bench_step.py run them in small"),
    Rule(r"rsbdali tune\b|--tuned\b", "parse", "measures for minutes: test_tuned.py runs it in small"),
    Rule(r"rsbdali doctor", "parse", "starts child processes: test_doctor.py runs it"),
    Rule(r"--device cuda|--cuda-graph|--executor graph|--torch-compile", "parse", "for a GPU"),
    # ours, here
    Rule(r"^rsbdali (recipe|index|train|validate|preview|export|report|pack|replay)\b", "run", "here"),
)


@dataclass(frozen=True)
class Command:
    """A command line of a page, without its comment and with its continuations joined."""

    page: str
    line: int
    text: str


def commands_in(page: Path, root: Path = ROOT) -> Iterator[Command]:
    name, fence, pending, first = page.relative_to(root).as_posix(), "", "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fence = "" if fence else line.strip("` ") or "text"
            continue
        begins = line.startswith("    ") and not PROGRAMS.isdisjoint(line.split()[:1])
        indented = not fence and (begins or bool(pending))
        if fence not in ("bash", "sh") and not indented:
            continue
        first = first if pending else number
        text = pending + re.sub(r"(^|\s+)#.*", "", line).strip()
        pending = text[:-1] if text.endswith("\\") else ""
        if text and not pending:
            yield Command(name, first, text)


COMMANDS = [command for page in PAGES for command in commands_in(page)]


def rule_for(text: str) -> Rule | None:
    return next((rule for rule in RULES if re.search(rule.pattern, text)), None)


def chosen(how: How) -> list[Command]:
    """Commands by rule; those of the tutorial hang together, and test_tutorial.py runs them."""
    of_rule = [c for c in COMMANDS if (rule := rule_for(c.text)) is not None and rule.how == how]
    return [c for c in of_rule if how != "run" or c.page != "docs/TUTORIAL.md"]


def arguments(text: str) -> list[str]:
    """What follows `rsbdali`, placeholders filled in, up to a pipe or the like."""
    words = shlex.split(text)
    at = next(i for i, word in enumerate(words) if word.split("/")[-1] == "rsbdali")
    rest = words[at + 1 :]
    end = next((i for i, word in enumerate(rest) if word in OPERATORS), len(rest))
    return [PLACES.get(word, word) for word in rest[:end]]


def leaf(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words name, and what is left for it to parse."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        assert words, f"{command.name} needs a command"
        assert words[0] in command.commands, f"rsbdali has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_every_command_has_a_rule() -> None:
    """Add a rule to RULES that runs the command, or says why not."""
    assert len(COMMANDS) > 50
    assert [f"{c.page}:{c.line}: {c.text}" for c in COMMANDS if rule_for(c.text) is None] == []


def parse_error(text: str) -> str:
    """What the command line has against a command, or ""."""
    try:
        target, words = leaf(arguments(text))
        target.make_context(str(target.name), words)
    except (AssertionError, click.UsageError) as error:
        return str(error)
    return ""


def test_the_command_line_knows_every_command() -> None:
    """Every flag exists, nothing is missing, every value has its type."""
    errors = {f"{c.page}:{c.line}: {c.text}": parse_error(c.text) for c in [*chosen("run"), *chosen("parse")]}
    assert len(errors) > 20
    assert {command: error for command, error in errors.items() if error} == {}


def test_commands_in_sentences_exist() -> None:
    """`rsbdali …` within a line of text may be a part of a command: its name and its flags are checked."""
    for page in PAGES:
        for text in re.findall(r"`(rsbdali [a-z][^`\n]*)`", page.read_text(encoding="utf-8")):
            words = text.split("|")[0].split()[1:]
            plain = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
            target, _ = leaf(plain[:2] if plain[0] == "recipe" else plain[:1])
            known = {flag for p in target.params for flag in (*p.opts, *p.secondary_opts)} | {"--help", "--debug"}
            used = {word.split("=")[0] for word in words if word.startswith("--")}
            assert used <= known, f"{page.name}: {text}: {used - known}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documents' commands make sense: data, two runs, the recipe and the weights they name."""
    folder = tmp_path_factory.mktemp("docs")
    for split, count in (("train", 6), ("val", 2)):
        for label, color in enumerate(("red", "green", "blue")):
            (folder / "data" / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                image = Image.linear_gradient("L").resize((60 + 5 * i, 50)).convert("RGB")
                image.paste(color, (5, 5, 20 + i, 30))
                image.save(folder / "data" / split / f"class{label}" / f"{i}.JPEG")
    page = (ROOT / "docs/RECIPES.md").read_text(encoding="utf-8")
    (folder / "flowers.yaml").write_text(re.search(r"```yaml\n(name: flowers.*?)```", page, re.S)[1])  # type: ignore[index]
    model = create_model(Recipe.load("a3", {"model": "test_resnet"}), 7)
    torch.save({"state_dict": model.state_dict()}, folder / "weights.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        make_sources(folder)
        for name in ("first", "second", "a3-resnet50"):
            invoke(["train", "--data", "data", "--experiment", name])
    return folder


def make_sources(folder: Path) -> None:
    """The data as tables, shards, Parquet, and a class map (docs/DATA.md)."""
    import pyarrow.parquet

    (folder / "classes.txt").write_text("class2\nclass0\nclass1\n")
    (folder / "tables").mkdir()
    (folder / "hub" / "data").mkdir(parents=True)
    for split in ("train", "val"):
        paths = sorted((folder / "data" / split).glob("*/*"))
        lines = [f"../{path.relative_to(folder)},{path.parent.name}\n" for path in paths]
        (folder / "tables" / f"{split}.csv").write_text("".join(lines))
        table = pyarrow.table(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
                "label": [int(path.parent.name[-1]) for path in paths],
            }
        )
        pyarrow.parquet.write_table(table, folder / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    invoke(["pack", "data", "-o", "shards", "--shards", "4"])


def without_keys(words: list[str]) -> list[str]:
    """A command without the options that SMALL sets: given both, they would be refused."""
    named = {f"--{key.replace('_', '-')}" for key in (*SMALL, "batch_size")}
    return [word for word, before in zip(words, ["", *words], strict=False) if not {word, before} & named]


def invoke(words: list[str]) -> str:
    """Run one of our commands, training made small, and give back its output."""
    if words[0] == "train":
        words = [*without_keys(words), *(word for k, v in SMALL.items() for word in ("--set", f"{k}={v}"))]
    if words[0] in ("train", "validate"):
        words = [*words, "--device", "cpu", "-j", "1"]
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    assert not result.return_value, result.output  # what the process would exit with
    return result.output


@pytest.mark.parametrize("command", [pytest.param(c, id=f"{c.page}:{c.line}") for c in chosen("run")])
def test_it_runs(command: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    assert invoke(arguments(command.text))


def test_files_that_commands_name_exist() -> None:
    words = {word for command in COMMANDS for word in command.text.split()}
    for word in words:
        if re.match(r"(examples|bench|recipes|tests)/", word):
            assert (ROOT / word).exists(), word


def test_links_lead_somewhere() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    links = [(page, target) for page, text in texts.items() for target in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
    assert links
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []
    modules = {m.removesuffix(".") for text in texts.values() for m in re.findall(r"python -m (rsbdali\.[\w.]+)", text)}
    assert [module for module in sorted(modules) if importlib.util.find_spec(module) is None] == []


def stale_paths(text: str, root: Path = ROOT) -> list[str]:
    """Paths in backticks, as `plan/draws.py`, that are neither below the root nor below `rsbdali/`."""
    words = re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|sh|yaml))?)`", text)
    tops = {path.name for folder in (root, root / "rsbdali") for path in folder.iterdir() if path.is_dir()}
    ours = [word for word in words if word.split("/")[0] in tops]
    return [word for word in ours if not ((root / word).exists() or (root / "rsbdali" / word).exists())]


def stale_files(text: str, root: Path = ROOT) -> list[str]:
    """Names in backticks, as `draws.py`, of Python files that the project does not hold."""
    names = {path.name for folder in SOURCE_FOLDERS for path in (root / folder).rglob("*.py")}
    return [word for word in re.findall(r"`(\w+\.py)`", text) if word not in names]


def test_paths_in_sentences_exist() -> None:
    """docs/LOG.md is history: it keeps the names of its day."""
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES if page.name != "LOG.md"}
    stale = {name: [*stale_paths(text), *stale_files(text)] for name, text in texts.items()}
    assert {name: paths for name, paths in stale.items() if paths} == {}
    assert stale_paths("`plan/draws.py` `rsbdali/plan/` `plan/none.py` `rsbdali/none/` `bench/gpu.sh`") == [
        "plan/none.py",
        "rsbdali/none/",
    ]
    assert stale_files("`draws.py` `nowhere.py`") == ["nowhere.py"]


def test_what_the_collector_sees(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text rsbdali none\n\n    rsbdali index D   # counts\n    rsbdali train --data D \\\n      --recipe a3\n"
        "    cli → trainer\n\n```bash\n# a comment\nA=1 rsbdali doctor\n\n```\n```python\nrsbdali = 1\n```\n"
    )
    found = [(c.line, c.text) for c in commands_in(page, tmp_path)]
    assert found == [(3, "rsbdali index D"), (4, "rsbdali train --data D --recipe a3"), (10, "A=1 rsbdali doctor")]
    assert arguments("torchrun --nproc-per-node 4 -m rsbdali train --data D | tee log") == ["train", "--data", "data"]
    assert rule_for("rm -rf /") is None
    with pytest.raises(AssertionError, match="rsbdali has no command 'trian'"):
        leaf(["trian"])
    target, words = leaf(["train", "--no-such-flag"])
    with pytest.raises(click.UsageError, match="--no-such-flag"):
        target.make_context("train", words)
