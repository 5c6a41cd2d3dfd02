"""`index`, `demo-data` and `preview`."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rsbdali.cli.options import DATA, parse_overrides, recipe_options
from rsbdali.errors import RsbdaliError


@click.command("index")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--workers", "-j", type=click.IntRange(1), help="Threads of the scan (default: all cores).")
@click.option("--rebuild", is_flag=True, help="Scan again, even where the cache still fits.")
@click.option("--val-labels", type=click.Path(path_type=Path), help="Label file of a flat val folder (ImageNet's).")
@click.option("--class-map", type=click.Path(path_type=Path), help="Class names in label order, one a line (timm's).")
@click.option("--bad-list", type=click.Path(path_type=Path), help="Write what is skipped or converted here (CSV).")
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


@click.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def demo_data(folder: Path, seed: int) -> None:
    """Make a small data set of real JPEGs in FOLDER: ten classes of shapes and textures."""
    make_demo(folder, seed)


def make_demo(folder: Path, seed: int = 0) -> None:
    """As the command."""
    from rsbdali.tools.demo_data import make_demo_data

    click.echo(f"demo data in {folder}: {make_demo_data(folder, seed=seed)}")


@click.command()
@recipe_options
@DATA
@click.option("--out", type=click.Path(path_type=Path), default=Path("preview.png"), show_default=True)
@click.option("--images", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--draws", type=click.IntRange(1, 16), default=4, show_default=True, help="Augmentations of each image.")
def preview(recipe: str, overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Draw what a recipe does to a few images, with the ops and their arguments."""
    from rsbdali.recipe import Recipe
    from rsbdali.tools.preview import preview as draw

    if data is None:
        raise RsbdaliError("--data is missing: a folder of images by class, or one with train/")
    path = draw(Recipe.load(recipe, parse_overrides(overrides)), data, **rest)
    click.echo(f"wrote {path}")


@click.command("pack")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shards", type=click.IntRange(1), required=True, help="Shards of the training set.")
@click.option("--max-size", type=click.IntRange(32), help="Shrink images whose longer side exceeds this (pixels).")
@click.option("--val-labels", type=click.Path(path_type=Path), help="Label file of a flat val folder (ImageNet's).")
@click.option("--workers", "-j", type=click.IntRange(1), help="Shards written at a time (default: all CPUs).")
def pack_command(
    folder: Path, out: Path, shards: int, max_size: int | None, val_labels: Path | None, workers: int | None
) -> None:
    """Write the images of FOLDER (train and val kept apart) into OUT as WebDataset shards, and check them.

    FOLDER may be any data source: a folder, tar files, Parquet, a table, a URL. Run it again after a stop: whole shards
    are kept.
    """
    from rsbdali.tools.index_summary import counting
    from rsbdali.tools.pack import PackOptions, pack

    options = PackOptions(folder, out, shards, max_size=max_size, val_labels=val_labels, workers=workers)
    with counting(Console(stderr=True), "pack and check") as progress:
        packed = pack(options, progress)
    for split, images in packed.images.items():
        click.echo(f"{split}: {images:,} images in {packed.shards[split]:,} shards")
    if packed.kept_shards:
        click.echo(f"{packed.kept_shards:,} shards were there already")
    if max_size is not None:
        click.echo(f"{packed.shrunk:,} images made smaller: batches are no longer the original's (see the manifest)")
    click.echo(f"read back and checked; wrote {packed.manifest}")
