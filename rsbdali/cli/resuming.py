"""`train --resume RUN`: options from the run's own `args.yaml`; what is given besides overrides them."""

import logging
import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rsbdali.bounded import shown
from rsbdali.distributed.world import World
from rsbdali.errors import RsbdaliError
from rsbdali.runs.folder import ARGS
from rsbdali.runs.resume_command import read_options

log = logging.getLogger(__name__)


def options_of(run: Path, context: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line: those that were not given are the run's.

    Args:
        run: its folder.
        context: of the command.
        given: all options by name, defaults among them.
    """
    params = {str(param.name): param for param in context.command.params}
    options, said = dict(given), []
    for name, value in read_options(run).items():
        if name not in options or (name == "nproc" and _is_rank()):
            continue
        given_here = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        try:
            before = None if value is None else params[name].type_cast_value(context, value)
        except click.BadParameter as error:
            if not given_here:
                raise RsbdaliError(
                    f"{run / ARGS}: its {params[name].opts[0]} is {shown(value)}: {error.message}"
                ) from error
            before = value
        if not given_here:
            options[name] = before
        elif before != options[name]:
            said.append(f"{params[name].opts[0]} {options[name]} (before: {before})")
    if World.from_env().is_rank_zero and (options.get("nproc", 1) == 1 or _is_rank()):
        log.info("%s: recipe, data and options as before%s", run, f", but for {', '.join(said)}" if said else "")
    return options


def _is_rank() -> bool:
    return "RANK" in os.environ or World.from_env().size > 1
