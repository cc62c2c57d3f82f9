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
from allotment.cli.renamed import present_words
from allotment.cli.report import Report
from allotment.cli.shape import ShapeAdvice
from allotment.cli.watch import Watch
from allotment.config import explained
from allotment.errors import AllotmentError, memory_explained, message

DESCRIPTION = "Decides how many rollouts each prompt gets in reinforcement learning with verifiable rewards."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status (2 for unusable input)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with memory_explained():
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
    name, words = (arguments[0] if arguments else ""), list(arguments[1:])
    forms: dict[str, Any] = {"train": train.command([])[0], "compare": compare.command([])[0]}
    if name in forms:
        load = train.command if name == "train" else compare.command
        forms[name], words = load(present_words(name, words))
    commands: Any = (
        Annotated[Allocate, tyro.conf.subcommand("allocate")]
        | Annotated[forms["train"], tyro.conf.subcommand("train")]
        | Annotated[Audit, tyro.conf.subcommand("audit")]
        | Annotated[forms["compare"], tyro.conf.subcommand("compare")]
        | Annotated[GradientVariance, tyro.conf.subcommand("gradient-variance")]
        | Annotated[PrepareSmolLM2, tyro.conf.subcommand("prepare-smollm2")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[ShapeAdvice, tyro.conf.subcommand("shape")]
        | Annotated[Watch, tyro.conf.subcommand("watch")]
    )
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    words = [name, *(words if name in forms else present_words(name, words))] if name else []
    return tyro.cli(commands, prog="allotment", description=DESCRIPTION, args=words, config=options)


if __name__ == "__main__":
    sys.exit(main())
