"""`pack`: a data set in shards."""

from pathlib import Path

import click
from rich.console import Console


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
    from rsbdali.tools.counting import counting
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
