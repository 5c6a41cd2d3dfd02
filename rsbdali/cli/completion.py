"""What a shell completes: recipes, keys, models; and `rsbdali completion`, which prints the script that installs it."""

from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from rsbdali.cli.help import command

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """\
rsbdali completion bash >> ~/.bashrc
rsbdali completion zsh >> ~/.zshrc
rsbdali completion fish > ~/.config/fish/completions/rsbdali.fish
"""
VARIABLE = "_RSBDALI_COMPLETE"  # as click makes it from the program's name


def complete_recipes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The recipes of the package, and files."""
    from rsbdali.recipe import recipe_names

    names = [CompletionItem(name) for name in recipe_names() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_models(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models of timm."""
    from rsbdali.tools.model_names import model_names

    return [CompletionItem(name) for name in model_names() if name.startswith(incomplete)]


@command("completion", epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which a shell completes commands, options, recipes, keys and models."""
    kind: Any = get_completion_class(shell)
    script = kind(context.find_root().command, {}, "rsbdali", VARIABLE)
    click.echo(ShellComplete.source(script))  # bash's own would start a bash to ask for its version
