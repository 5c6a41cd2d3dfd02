"""The model card (README.md) of an exported folder: what was trained, on what, with what result, and how to use it."""

import re
from pathlib import Path

import yaml

from rsbdali.errors import counted
from rsbdali.runs.folder import fact_count
from rsbdali.tools.export.source import Source

SHOWN_CLASSES = 12
PAPER = "https://arxiv.org/abs/2110.00476"


def card(source: Source, name: str) -> str:
    """The card as Markdown, with the metadata block that the HF hub reads.

    Args:
        source: what was trained.
        name: of the folder, for the title and the example.
    """
    parts = [_metadata(), f"# {_escaped(name)}", _opening(source), _figures(source), _data(source), _use(source, name)]
    return "\n\n".join([*parts, _recipe(source)]) + "\n"


def _metadata() -> str:
    # no license and no data set: they are the user's to state
    content = {"tags": ["image-classification", "timm", "rsbdali"], "library_name": "timm"}
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---"


def _opening(source: Source) -> str:
    recipe, versions = source.recipe, source.versions
    programs = ", ".join(f"{key} {_escaped(versions[key])}" for key in ("rsbdali", "torch", "timm") if key in versions)
    weights = "averaged over training (EMA)" if source.averaged else "of the last step, not averaged"
    return (
        f"`{recipe.model}`, trained with recipe `{recipe.name}` in the manner of *ResNet Strikes Back* ({PAPER}) by "
        f"{programs}. The weights are {weights}, after {source.epochs} of {counted(recipe.epochs, 'epoch')}."
    )


def _figures(source: Source) -> str:
    recipe = source.recipe
    size = " x ".join(map(str, recipe.test_size))
    top1 = "not evaluated" if source.top1 is None else f"{source.top1:.3f} %"
    rows = [
        ("top-1 on the validation images", top1),
        ("evaluated at", f"{size} px, crop {recipe.crop_pct:g}, {recipe.interpolation}"),
        ("trained at", f"{' x '.join(map(str, recipe.train_size))} px"),
        ("parameters", f"{sum(p.numel() for p in source.model.parameters()):,}"),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return f"## Figures\n\n| | |\n|---|---|\n{table}\n\nMeasured by the run itself, not by others."


def _data(source: Source) -> str:
    names = source.class_names
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:SHOWN_CLASSES])
    rest = f" and {len(names) - SHOWN_CLASSES} more (config.json has all)" if len(names) > SHOWN_CLASSES else ""
    facts, images = source.facts, ""
    train, val = fact_count(facts, "train_images"), fact_count(facts, "val_images")
    if train is not None and val is not None:
        images = f"{counted(train, 'image')} in training, {val:,} in validation, "
    # the last part only: the full path is private
    folder = f"folder `{_plain(Path(facts['data']).name)}`, " if facts.get("data") else ""
    return f"## Data\n\n{folder}{images}{counted(len(names), 'class', 'classes')}: {shown}{rest}."


def _use(source: Source, name: str) -> str:
    test = ", use_test_size=True" if source.recipe.test_size != source.recipe.train_size else ""
    return (
        "## Use\n\n```python\nimport timm\n\n"
        f'model = timm.create_model("local-dir:{_plain(name)}", pretrained=True).eval()\n'
        f"config = timm.data.resolve_model_data_config(model{test})\n"
        "transform = timm.data.create_transform(**config)\n"
        "logits = model(transform(image).unsqueeze(0))\n```"
    )


def _recipe(source: Source) -> str:
    values = source.recipe.to_dict()
    if not source.recipe.is_reported:
        del values["reported"]  # the paper's figures, of another model or another length
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))  # a shorter row does not end the block
    return f"## Recipe\n\n`rsbdali train --recipe FILE` takes this as it is:\n\n{fence}yaml\n{body}{fence}"


def _plain(text: str) -> str:
    """A name without what would break out of a Markdown code span or a string."""
    return "".join(c for c in text if c.isprintable() and c not in '`"\\|').strip() or "?"


def _escaped(text: str) -> str:
    """A text that Markdown shows as it is: no markup, no HTML, one line."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return re.sub(r"([!-*/;-@\[-`{-~])", r"\\\1", line)  # ASCII punctuation but for + , - . :
