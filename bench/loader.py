"""bench-loader: how fast batches come, what they cost, how that compares, and whether a model would ever wait.

Each candidate runs in a process of its own on the same files, recipe, batch size and number of threads; rounds are
interleaved (A B C A B C …) and all but the one being measured are frozen.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rsbdali.atomic import write_text
from rsbdali.bench.material import enough_images
from rsbdali.bench.measure.meter import Round
from rsbdali.bench.race.candidate import CandidateFailed
from rsbdali.bench.race.feeds import FeedSpec
from rsbdali.bench.race.model_step import measure_model
from rsbdali.bench.race.out_of_memory import dropped_where_memory_ends
from rsbdali.bench.race.peers import NO_RANDAUGMENT, PEERS, missing
from rsbdali.bench.race.race import Say, race, start
from rsbdali.bench.report.figures import (
    STAGES,
    BenchReport,
    LoaderFigures,
    ModelFigures,
    overlap,
    ratios,
    stage_breakdown,
    to_json,
)
from rsbdali.bench.report.presence import busy_warning
from rsbdali.bench.report.terminal import print_report
from rsbdali.bench.report.verdict import Loader, Model, verdict
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import open_split
from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.environment import machine_record, write_record
from rsbdali.errors import RecipeError, counted
from rsbdali.recipe import Recipe
from rsbdali.training.model import create_model

__all__ = ["BenchOptions", "BenchReport", "main", "print_report", "run", "to_json"]

STAGE_ROUNDS = 3
Results = tuple[LoaderFigures, ...]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    Attributes:
        data: DIR/train/<class>/… or DIR/<class>/….
        recipe: sizes, augmentation and mixing; its batch is replaced by `batch_size`.
        batch_size: images a batch (one mix group).
        workers: threads of our loader and of DALI, worker processes of the others; None: the cores at hand.
        device: `cpu`, `cuda`, or `auto`.
        seconds: length of one measured window.
        rounds: how often each candidate is measured.
        decode: of our loader: auto, gpu, gpu-roi or cpu.
        hw_decoder_load: of our loader.
        peers: names of `peers.PEERS`.
        stages: measure the stage breakdown too.
        against: a timm model whose training step is measured, None for none.
        json: file for the report, None for none.
        report: HTML page for the report, None for none.
    """

    data: Path
    recipe: Recipe
    batch_size: int = 128
    workers: int | None = None
    device: str = "auto"
    seconds: float = 5.0
    rounds: int = 5
    decode: str = "auto"
    hw_decoder_load: float | None = None
    peers: tuple[str, ...] = ()
    stages: bool = False
    against: str | None = None
    json: Path | None = None
    report: Path | None = None


def main(
    recipe: Recipe,
    data: Path,
    console: Console,
    *,
    peers: str | None,
    json_path: Path | None,
    report_path: Path | None,
    **options: Any,
) -> None:
    """The command: measure, saying what is being done, then print and write the report."""
    names = tuple(name.strip() for name in (peers or "").split(",") if name.strip())
    chosen = BenchOptions(recipe=recipe, data=data, peers=names, json=json_path, report=report_path, **options)
    print_report(console, run(chosen, say=lambda line: console.print(line, style="dim", markup=False)))
    for path in (json_path, report_path):
        if path:
            console.print(f"wrote {path}", markup=False)


def run(options: BenchOptions, say: Say = lambda _: None) -> BenchReport:
    """Measure, and write the JSON and HTML files that were asked for.

    Args:
        options: what to measure.
        say: called with a line on what is being done.

    Raises:
        RsbdaliError: no such data, device or recipe value; our own loader failed (its last line is the message).
    """
    check_options(options)
    with tempfile.TemporaryDirectory(prefix="rsbdali-bench-") as scratch:
        report = _run(options, Path(scratch), say)
    if options.json:
        write_record(options.json, to_json(report) | {"finished": True})
    if options.report:
        from rsbdali.bench.report.html import page

        write_text(options.report, page(to_json(report)))
    return report


def check_options(options: BenchOptions) -> None:
    """Refuse what cannot be measured.

    Raises:
        RsbdaliError: one line says what.
    """
    if options.batch_size < 2 or options.batch_size % 2:
        raise RecipeError(f"--batch-size {options.batch_size}: must be even and at least 2: images are mixed in pairs")
    for name in options.peers:
        if name not in PEERS:
            raise RecipeError(f"--peers {name}: unknown; known are {', '.join(PEERS)}")
    if options.seconds <= 0 or options.rounds < 1 or (options.workers is not None and options.workers < 1):
        raise RecipeError("--seconds, --rounds and --workers must be positive")
    if options.against:  # a wrong name is said before minutes are spent
        create_model(_model_recipe(options), num_classes=2)


def _run(options: BenchOptions, scratch: Path, say: Say) -> BenchReport:
    spec, images, copies = feed_spec(options, scratch, say)
    report = partial(_report, options, spec, images, copies)

    def keep(results: Results, skipped: dict[str, str]) -> None:
        if options.json:  # what is left of a bench that is interrupted
            write_record(options.json, to_json(report(results, skipped)) | {"finished": False})

    results, skipped = _loaders(options, spec, say, keep)
    stages, gpu_us = _stages(options, spec, say) if options.stages else ((), None)
    model = _model(options, skipped, say) if options.against else None
    return report(results, skipped, stages, gpu_us, model)


def feed_spec(options: BenchOptions, scratch: Path, say: Say) -> tuple[FeedSpec, int, int]:
    """Our loader's task; how many images there are, and how often each is read an epoch.

    Args:
        options: checked.
        scratch: for links to the images, where they are few, and for their index.
        say: called with a warning where images are few.
    """
    index = open_split(options.data, "any")
    root, copies = enough_images(index, options.batch_size, scratch)
    if copies > 1:
        few = counted(len(index), "image is", "images are")
        say(f"{few} few: each is read {copies} times an epoch, from the page cache")
    spec = FeedSpec(
        kind="rsbdali",
        root=str(root),
        cache_dir=str(scratch / "cache"),
        recipe=_bench_recipe(options).to_dict(),
        batch_size=options.batch_size,
        workers=options.workers or default_threads(),
        device=str(resolve_device(options.device)),
        decode=options.decode,
        hw_decoder_load=options.hw_decoder_load,
    )
    ImageIndex.load(root, cache_dir=scratch / "cache")  # once, for all candidates
    return spec, len(index), copies


def _report(
    options: BenchOptions,
    spec: FeedSpec,
    images: int,
    copies: int,
    results: Results,
    skipped: dict[str, str],
    stages: Results = (),
    gpu_us: tuple[float, ...] | None = None,
    model: ModelFigures | None = None,
) -> BenchReport:
    peers = [r for r in results if not r.name.startswith("rsbdali")]
    ours = _ours(spec.load_recipe(), results)
    ratio_to, cpu_ratio_to = _ratios(ours, results)
    return BenchReport(
        machine=machine_record(),
        config=_config(options, spec, images, copies),
        results=results,
        skipped=skipped,
        ratio_to=ratio_to,
        cpu_ratio_to=cpu_ratio_to,
        warning=busy_warning({each.name: each.presence for each in (*results, *stages, *([model] if model else []))}),
        stages=stage_breakdown(stages, gpu_us) if stages else (),
        model=model,
        verdict=verdict(
            _figures(ours),
            peers=tuple(
                dataclasses.replace(
                    _figures(peer),
                    ours_by_it=ratio_to[peer.name],
                    ours_by_its_cpu=cpu_ratio_to.get(peer.name),
                    overlaps=overlap(ours.rounds, peer.rounds),
                    does_less=options.recipe.aa is not None and peer.name in NO_RANDAUGMENT,
                )
                for peer in peers
            ),
            model=Model(name=model.name, images_per_s=model.median) if model else None,
            threads=spec.workers,
            cores=default_threads(),
            device=resolve_device(spec.device).type,
        ),
    )


def _bench_recipe(options: BenchOptions) -> Recipe:
    """The recipe with mix groups of the bench's batch size: one a step, or with repeated augmentation the recipe's own.

    `across_ranks` puts the repeats of an image into different groups; with a single one it would be `decode_once`.
    """
    groups = options.recipe.mix_groups if options.recipe.aug_repeats > 1 else 1
    return dataclasses.replace(
        options.recipe,
        global_batch_size=options.batch_size * groups,
        mix_groups=groups,
        micro_batch_size=None,
        mixup_off_epoch=0,
    )


def _own_specs(spec: FeedSpec) -> list[FeedSpec]:
    """Ours, or with repeated augmentation both of its modes."""
    if spec.load_recipe().aug_repeats <= 1:
        return [spec]
    return [spec.as_kind(f"rsbdali-{mode}", aug_repeats_mode=mode) for mode in ("across_ranks", "decode_once")]


def _loaders(
    options: BenchOptions, spec: FeedSpec, say: Say, keep: Callable[[Results, dict[str, str]], None]
) -> tuple[Results, dict[str, str]]:
    skipped = {name: why for name in options.peers if (why := missing(name))}
    peers = [spec.as_kind(name) for name in options.peers if name not in skipped]
    with ExitStack() as stack:
        candidates = start([*_own_specs(spec), *peers], skipped, stack, say)
        notes = {c.name: c.note for c in candidates}

        def figures(rounds: Mapping[str, Sequence[Round]]) -> Results:
            return tuple(LoaderFigures(name=n, rounds=tuple(r), note=notes[n]) for n, r in rounds.items())

        done = race(
            candidates, options.rounds, options.seconds, skipped, say, lambda rounds: keep(figures(rounds), skipped)
        )
    return figures(done), skipped


def _stages(
    options: BenchOptions, spec: FeedSpec, say: Say
) -> tuple[tuple[LoaderFigures, ...], tuple[float, ...] | None]:
    """Figures of the stages, interleaved, and GPU-µs an image of each; without repeats, to give an image's cost."""
    single = spec.as_kind(spec.kind, aug_repeats=0)
    specs = [dataclasses.replace(single, kind=f"stage:{name}") for name in STAGES]
    rounds = min(options.rounds, STAGE_ROUNDS)
    with ExitStack() as stack:
        skipped: dict[str, str] = {}
        stages = start(specs, skipped, stack, say)
        found = race(stages, rounds, options.seconds, skipped, say)
        on_gpu = spec.device.startswith("cuda")
        gpu_us = tuple(stage.gpu_us_per_image() for stage in stages if stage.name in found) if on_gpu else None
    if skipped:
        raise CandidateFailed(*next(iter(skipped.items())))
    return tuple(LoaderFigures(name=name, rounds=tuple(r)) for name, r in found.items()), gpu_us


def _model(options: BenchOptions, skipped: dict[str, str], say: Say) -> ModelFigures | None:
    say(f"training steps of {options.against} on synthetic data")
    recipe = _model_recipe(options)
    with dropped_where_memory_ends(recipe.model, skipped):
        return measure_model(recipe, batch_size=options.batch_size, device=options.device, seconds=options.seconds)
    return None


def _model_recipe(options: BenchOptions) -> Recipe:
    return dataclasses.replace(options.recipe, model=str(options.against))


def _ours(recipe: Recipe, results: Sequence[LoaderFigures]) -> LoaderFigures:
    """The result of the recipe unchanged."""
    name = "rsbdali" if recipe.aug_repeats <= 1 else f"rsbdali-{recipe.aug_repeats_mode}"
    return next(r for r in results if r.name == name)


def _ratios(ours: LoaderFigures, results: Sequence[LoaderFigures]) -> tuple[dict[str, float], dict[str, float]]:
    """Ours by each peer, and local by spread: by images/s and by CPU time an image."""
    pairs = {r.name: (ours.rounds, r.rounds) for r in results if not r.name.startswith("rsbdali")}
    by_name = {r.name: r for r in results}
    if "rsbdali-decode_once" in by_name:
        pairs["across_ranks"] = by_name["rsbdali-decode_once"].rounds, by_name["rsbdali-across_ranks"].rounds
    return ratios(pairs)


def _figures(result: LoaderFigures) -> Loader:
    return Loader(name=result.name, images_per_s=result.images_per_s.median, cpu_us_per_image=result.cpu_us_per_image)


def _config(options: BenchOptions, spec: FeedSpec, images: int, copies: int) -> dict[str, Any]:
    recipe = spec.load_recipe()
    return {
        "recipe": recipe.name,
        "train_size": list(recipe.train_size),
        "aa": recipe.aa,
        "aug_repeats": recipe.aug_repeats,
        "aug_repeats_mode": recipe.aug_repeats_mode,
        "batch_size": spec.batch_size,
        "workers": spec.workers,
        "device": spec.device,
        "decode": spec.decode,
        "hw_decoder_load": spec.hw_decoder_load,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "data": str(options.data),
        "images": images,
        "times_tiled": copies,
        "page_cache": "warm",
    }
