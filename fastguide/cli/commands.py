"""Reading the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from fastguide.cli.base import Command
from fastguide.cli.compare import Compare, Demo
from fastguide.cli.doctor import Doctor
from fastguide.cli.finetune import Finetune
from fastguide.cli.sample import Sample
from fastguide.cli.zoo import ZooList, ZooTrain

DESCRIPTION = (
    "Guide diffusion models toward a reward while sampling. Start with `fastguide demo`; "
    "`fastguide COMMAND --help` lists a command's options."
)


@dataclass(kw_only=True)
class Zoo:
    """List the shipped tasks, or train their models again."""

    command: (
        Annotated[ZooList, tyro.conf.subcommand("list")]
        | Annotated[ZooTrain, tyro.conf.subcommand("train")]
    )


def parse(arguments: Sequence[str] | None) -> Command:
    """The command with its options; exits with code 2, or 0 after --help, where there is none."""
    commands: Any = (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Sample, tyro.conf.subcommand("sample")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Finetune, tyro.conf.subcommand("finetune")]
        | Annotated[Zoo, tyro.conf.subcommand("zoo")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    )
    read = tyro.cli(
        commands,
        prog="fastguide",
        description=DESCRIPTION,
        args=arguments,
        config=(
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.FlagCreatePairsOff,
        ),
    )
    command: Command = read.command if isinstance(read, Zoo) else read
    return command
