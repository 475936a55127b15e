"""All jobs as one command with subcommands, for its help and its shell completion only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union

import tyro

from effnet_ray.cli.check import Check
from effnet_ray.cli.data import Data
from effnet_ray.cli.evaluate import Evaluate
from effnet_ray.cli.finetune import Finetune
from effnet_ray.cli.models import verb_flags
from effnet_ray.cli.pack import Pack
from effnet_ray.cli.parsing import parse
from effnet_ray.cli.predict import Predict
from effnet_ray.cli.serve import Serve
from effnet_ray.cli.tune import Tune


@dataclass(frozen=True)
class Models:
    """List, show, promote, verify, export, delete and clean up (gc) the releases of a store."""

    verb: tyro.conf.OmitSubcommandPrefixes[verb_flags()]  # type: ignore[valid-type]


DESCRIPTION = (
    "Fine-tune EfficientNets on your images with Ray, on a laptop or a cluster.\n"
    "`effnet-ray --version` prints the version."
)

FLAGS: dict[str, type] = {
    "pack": Pack,
    "finetune": Finetune,
    "tune": Tune,
    "evaluate": Evaluate,
    "predict": Predict,
    "serve": Serve,
    "models": Models,
    "check": Check,
    "data": Data,
}


def parse_all(argv: Sequence[str]) -> None:
    """Answer `--help`, `--tyro-print-completion SHELL` or `--tyro-write-completion SHELL FILE`.

    Prints an error for anything else, such as an unknown subcommand. Exits in each case.
    """
    flags = [Annotated[kind, tyro.conf.subcommand(job)] for job, kind in FLAGS.items()]
    command: Any = Union[tuple(flags)]  # noqa: UP007  # built at run time
    parse(command, argv, description=DESCRIPTION)
