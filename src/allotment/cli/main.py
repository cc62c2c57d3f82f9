"""The ``allotment`` command: parses, runs, and turns the library's errors into messages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from allotment.cli import compare, train
from allotment.cli.allocate import Allocate
from allotment.cli.audit import Audit
from allotment.cli.gradient_variance import GradientVariance
from allotment.cli.prepare_smollm2 import PrepareSmolLM2
from allotment.cli.report import Report
from allotment.cli.watch import Watch
from allotment.config import explained
from allotment.errors import AllotmentError, message

DESCRIPTION = "Decides how many rollouts each prompt gets in reinforcement learning with verifiable rewards."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status (2 for unusable input)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parse(arguments).run()
    except ValidationError as error:
        print(f"error: {explained(error, 'the command line')}", file=sys.stderr)
        return 2
    except AllotmentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        said = message(
            "a file cannot be read or written",
            got=error,
            allowed="paths that exist and may be used",
            fix="check the path, its permissions and the room on the disk",
        )
        print(f"error: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; a training run continues with --resume", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str]) -> Any:
    """The command with its settings; exits where the words are unusable."""
    form, defaults = train.command(arguments if arguments[:1] == ["train"] else [])
    compared, common = compare.command(arguments if arguments[:1] == ["compare"] else [])
    commands: Any = (
        Annotated[Allocate, tyro.conf.subcommand("allocate")]
        | Annotated[form, tyro.conf.subcommand("train", **defaults)]
        | Annotated[Audit, tyro.conf.subcommand("audit")]
        | Annotated[compared, tyro.conf.subcommand("compare", **common)]
        | Annotated[GradientVariance, tyro.conf.subcommand("gradient-variance")]
        | Annotated[PrepareSmolLM2, tyro.conf.subcommand("prepare-smollm2")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Watch, tyro.conf.subcommand("watch")]
    )
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    return tyro.cli(commands, prog="allotment", description=DESCRIPTION, args=arguments, config=options)


if __name__ == "__main__":
    sys.exit(main())
