"""`jobs/serve.py`."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import tyro

from effnet_ray.cli import flags as shared
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import (
    EffnetRayError,
    EvaluationError,
    InputError,
    RecipeError,
    ReplicaStorageError,
    StorageError,
)
from effnet_ray.inference.options import ServeOptions
from effnet_ray.placement import Placement
from effnet_ray.release.load import load_release, release_uri
from effnet_ray.runtime import session

DAY_S = 24 * 3600


@dataclass(frozen=True)
class Serve:
    """Serve a release over HTTP until Ctrl-C: POST an image, get labels."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or its folder's URI. An alias is followed:
    what it means is served, also when it means another release later."""
    store: str = ""
    """Where releases are. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    serving: tyro.conf.OmitArgPrefixes[ServeOptions] = field(default_factory=ServeOptions)
    follow_every: float = 30
    """Seconds from one look at what the alias means to the next; at most a day."""
    local: bool = False
    """On this machine alone, whatever cluster the job was submitted to."""
    verbose: bool = False
    """Show Ray's own logs."""


def serve_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/serve.py`."""
    store = shared.environment()["where"].store
    flags = tyro.cli(Serve, args=argv, default=Serve(tyro.MISSING, store=store))
    if not 0 < flags.follow_every <= DAY_S:
        raise RecipeError(
            f"follow_every is {flags.follow_every:g} s: expected more than 0, at most {DAY_S}"
        )
    server, serving = _ray_serve(), flags.serving
    uri = release_uri(flags.model, flags.store)
    load_release(uri, "")  # refused before anything is leased
    placement = Placement(workers=str(serving.replicas), gpus_per_worker=serving.gpus_per_replica)
    at = f"http://{serving.host}:{serving.port}/"
    logging.getLogger("ray.serve").setLevel(logging.INFO if flags.verbose else logging.ERROR)
    with Terminal() as people:
        people.say("Ray: " + session.connect(placement, local=flags.local, verbose=flags.verbose))
        session.request_resources(placement, [uri])
        server.start(serving)
        try:
            server.deploy(uri, serving)
            people.table(f"serving {flags.model}", {
                "release": uri, "ask": f"curl --data-binary @photo.jpg {at}", "stop": "Ctrl-C",
            })  # fmt: skip
            served = _follow(flags, uri, people, server.deploy, _ticks(flags.follow_every))
        finally:
            server.stop()
    return {"model": flags.model, "release_uri": served, "url": at}


Deploy = Callable[[str, ServeOptions], None]


def _ray_serve() -> Any:
    """`use.serve`. Raises InputError where Ray Serve is not installed."""
    try:
        from effnet_ray.inference import serve
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: pip install 'effnet-ray[serve]'"
        ) from error
    return serve


def _ticks(seconds: float) -> Iterator[None]:
    """Now and then, until Ctrl-C."""
    try:
        while True:
            time.sleep(seconds)
            yield
    except KeyboardInterrupt:
        return


def _follow(
    flags: Serve, uri: str, people: Terminal, deploy: Deploy, ticks: Iterator[None]
) -> str:
    """Roll to whatever the model means at each tick; what was served last.

    What cannot be served is told, once, and what is served stays; where only storage did not
    answer, it is tried again.
    """
    refused = told = ""
    for _ in ticks:
        now = refused
        try:
            now = release_uri(flags.model, flags.store)
            if now not in (uri, refused):
                deploy(now, flags.serving)
                uri, refused, told = now, "", ""
                people.say(f"{flags.model} means {uri} now: served")
        except EffnetRayError as error:
            refused = refused if _passes(error) else now
            if str(error) != told:
                told = str(error)
                people.say(f"{flags.model} cannot be followed: {told}; {uri} is served still")
            if isinstance(error, EvaluationError):  # Ray Serve would go on trying
                with suppress(EffnetRayError):
                    deploy(uri, flags.serving)
    return uri


def _passes(error: EffnetRayError) -> bool:
    """Whether it was storage, which may answer the next time: the driver's or a replica's."""
    return isinstance(error, StorageError | ReplicaStorageError)
