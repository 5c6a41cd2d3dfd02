"""How help looks: options in groups, commands in groups, whole summaries at any width, recipe keys folded away."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

GENERAL = "Options"
GROUPS = {
    "Recipe": "recipe_name recipe overrides batch_size demo help_recipe",
    "Data": "data val_labels class_map max_bad_images images draws",
    "Run": "out output experiment resume checkpoint_every on_nan initial_checkpoint checkpoint model pretrained device "
    "nproc rank_timeout run epoch step",
    "Speed": "workers decode hw_decoder_load tuned torch_compile cuda_graph deterministic affinity",
    "Logging": "loggers json_path report_path",
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
KEYS = "Recipe keys"
ORDER = ("Data", "Run", "Speed", "Logging", "Recipe", KEYS, GENERAL)
COMMANDS = {
    "Train": "train validate",
    "Data": "index preview pack demo-data",
    "Recipes": "recipe",
    "Speed": "doctor tune bench-loader bench-step",
    "Runs": "report replay export watch",
    "Shell": "completion",
}
COMMAND_GROUP_OF = {name: group for group, names in COMMANDS.items() for name in names.split()}
FEW = 6  # options that need no groups


class Command(click.Command):
    """A command whose help shows its options in groups."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, line by line."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.epilog.splitlines()))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, by `GROUPS`."""
        sections = list(_sections(self, ctx))
        if any(heading == KEYS for heading, _ in sections):  # asked for: nothing else is shown then
            sections = [section for section in sections if section[0] == KEYS]
        if sum(len(records) for _, records in sections) <= FEW:
            sections = [(GENERAL, [record for _, records in sections for record in records])]
        for heading, records in sections:
            with formatter.section(heading):
                formatter.write_dl(records)


def _sections(command: click.Command, ctx: click.Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    records: dict[str, list[tuple[str, str]]] = {heading: [] for heading in ORDER}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and not isinstance(param, click.Argument):
            heading = getattr(param, "group", None) or GROUP_OF.get(str(param.name), GENERAL)
            records[heading].append((_spec(record[0]), _text(record[1])))
    return ((heading, found) for heading, found in records.items() if found)


def _spec(spec: str) -> str:
    return re.sub(r"(INTEGER|FLOAT)( RANGE)?", lambda found: "N" if found[1] == "INTEGER" else "X", spec)


def _text(text: str) -> str:
    """Without click's brackets around a default in words, and its bounds of a count."""
    return re.sub(r"\[default: \((.*?)\)", r"[default: \1", re.sub(r"(; )?x>=[012]\b(; )?|; 0<x<=1000000.0", "", text))


class Group(click.Group):
    """A command of commands: shown in groups, with their whole first sentence; called bare it shows its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, but nothing given is no mistake."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, without cutting a summary off."""
        sections: dict[str, list[tuple[str, str]]] = {}
        known: Mapping[str, str] = COMMAND_GROUP_OF if ctx.parent is None else {}
        width = max(map(len, self.commands))
        for name, command in self.commands.items():
            summary = command.get_short_help_str(limit=1000)
            sections.setdefault(known.get(name, "Commands"), []).append((name.ljust(width), summary))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def command(name: str, **settings: Any) -> Any:
    """`click.command` with grouped options, of which each says its default."""
    return click.command(name, cls=Command, context_settings={"show_default": True}, **settings)
