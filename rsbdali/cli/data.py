"""`index`, `demo-data` and `preview`."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rsbdali.cli.help import command
from rsbdali.cli.options import (
    CLASS_MAP,
    DATA,
    PATH,
    VAL_LABELS,
    out_option,
    parse_overrides,
    recipe_options,
)
from rsbdali.errors import RsbdaliError, counted


@command("index")
@click.argument("folder", type=PATH)
@click.option("--workers", "-j", type=click.IntRange(1), show_default="all cores", help="Threads of the scan.")
@click.option("--rebuild", is_flag=True, help="Scan again, even where the cache still fits.")
@VAL_LABELS
@CLASS_MAP
@click.option("--bad-list", type=PATH, help="Write what is skipped or converted here (CSV).")
def index_command(
    folder: Path,
    workers: int | None,
    rebuild: bool,
    val_labels: Path | None,
    class_map: Path | None,
    bad_list: Path | None,
) -> None:
    """Scan FOLDER (or its train and val folders): counts, sizes, formats, and every file that is no image.

    Ends with 2 where training would refuse the data.
    """
    from rsbdali.tools.index_summary import report

    report(
        Console(),
        folder,
        threads=workers,
        rebuild=rebuild,
        val_labels=val_labels,
        class_map=class_map,
        bad_list=bad_list,
    )


@command("demo-data")
@out_option("demo-data", "Folder to make.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the drawings.")
def demo_data(out: Path, seed: int) -> None:
    """Make a small data set of real JPEGs: ten classes of shapes and textures."""
    make_demo(out, seed)


def make_demo(folder: Path, seed: int = 0) -> None:
    """As the command."""
    from rsbdali.tools.demo_data import make_demo_data

    click.echo(f"demo data in {folder}: {make_demo_data(folder, seed=seed)}")


@command("preview")
@recipe_options
@DATA
@out_option("preview.png", "Picture to write (PNG).")
@click.option("--images", type=click.IntRange(1, 64), default=4, help="Images, a row each.")
@click.option("--draws", type=click.IntRange(1, 16), default=4, help="Augmentations of each image.")
def preview(recipe: str, overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Draw what a recipe does to a few images, with the ops and their arguments."""
    from rsbdali.progress_bar import waiting
    from rsbdali.recipe import Recipe
    from rsbdali.tools.preview import preview as draw

    if data is None:
        raise RsbdaliError("--data is missing: a folder of images by class, or one with train/")
    with waiting("preview"):
        path = draw(Recipe.load(recipe, parse_overrides(overrides)), data, **rest)
    click.echo(f"wrote {path}")


@command("pack")
@click.argument("folder", type=PATH)
@out_option(None, "Folder of the shards.", required=True)
@click.option(
    "--shards",
    type=click.IntRange(1),
    show_default="none: a folder of images, with --seekable",
    help="Shards of the training set.",
)
@click.option(
    "--max-size",
    type=click.IntRange(32),
    show_default="as they are",
    help="Shrink images whose longer side exceeds this (pixels).",
)
@click.option("--seekable", is_flag=True, help="Restart markers, without loss: a crop's part of a JPEG is read alone.")
@VAL_LABELS
@click.option("--workers", "-j", type=click.IntRange(1), show_default="all cores", help="Shards written at a time.")
def pack_command(folder: Path, **options: Any) -> None:
    """Write the images of FOLDER (train and val kept apart) as WebDataset shards, and check them.

    FOLDER may be any data source: a folder, tar files, Parquet, a table, a URL. Run it again after a stop: whole shards
    are kept.
    """
    from rsbdali.progress_bar import counting
    from rsbdali.tools.pack import PackOptions, pack

    chosen = PackOptions(folder, **options)
    with counting("pack and check") as progress:
        packed = pack(chosen, progress)
    for split, images in packed.images.items():
        shards = f" in {counted(packed.shards[split], 'shard')}" if packed.shards else ""
        click.echo(f"{split}: {counted(images, 'image')}{shards}")
    if packed.kept_shards:
        click.echo(f"{counted(packed.kept_shards, 'shard was', 'shards were')} there already")
    if chosen.seekable:
        others = sum(packed.images.values()) - packed.seekable
        lines = f" ({packed.whole_lines:,} of them by whole lines)" if packed.whole_lines else ""
        as_before = counted(others, "is as it was", "are as they were")
        click.echo(f"{counted(packed.seekable, 'image is', 'images are')} read in part{lines}; {as_before}")
    if chosen.max_size is not None:
        click.echo(
            f"{counted(packed.shrunk, 'image')} made smaller: batches are no longer the original's (see the manifest)"
        )
    click.echo(f"read back and checked; wrote {packed.manifest}")
