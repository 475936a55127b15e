"""`jobs/serve.py`."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tyro

from effnet_ray import storage
from effnet_ray.cli import flags as shared
from effnet_ray.console.people import People
from effnet_ray.errors import EffnetRayError, InputError, RecipeError
from effnet_ray.placement import Placement
from effnet_ray.store.releases import ModelStore
from effnet_ray.train import session
from effnet_ray.use.answers import Serving


@dataclass(frozen=True)
class Serve:
    """Serve a release over HTTP until Ctrl-C: POST an image, get labels."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or its folder's URI. An alias is followed:
    what it means is served, also when it means another release later."""
    store: str = ""
    """Where releases are. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    serving: tyro.conf.OmitArgPrefixes[Serving] = field(default_factory=Serving)
    follow_every: float = 30
    """Seconds from one look at what the alias means to the next."""
    local: bool = False
    """On this machine alone, whatever cluster the job was submitted to."""
    verbose: bool = False
    """Show Ray's own logs."""


def serve_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/serve.py`."""
    store = shared.environment()["where"].store
    flags = tyro.cli(Serve, args=argv, default=Serve(tyro.MISSING, store=store))
    if flags.follow_every <= 0:
        raise RecipeError(f"follow_every is {flags.follow_every:g} s: expected more than 0")
    deploy, stop = _ray_serve()
    uri = meaning(flags.model, flags.store)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` is a Ctrl-C too
    with People() as people:
        people.say("Ray: " + session.connect(
            Placement(workers=str(flags.serving.replicas)), local=flags.local,
            verbose=flags.verbose))  # fmt: skip
        deploy(uri, flags.serving)
        at = f"http://{flags.serving.host}:{flags.serving.port}/"
        people.table(f"serving {flags.model}", {
            "release": uri, "ask": f"curl --data-binary @photo.jpg {at}", "stop": "Ctrl-C",
        })  # fmt: skip
        try:
            served = _follow(flags, uri, people, deploy, _ticks(flags.follow_every))
        finally:
            stop()
    return {"model": flags.model, "release_uri": served, "url": at}


Deploy = Callable[[str, Serving], None]


def _ray_serve() -> tuple[Deploy, Callable[[], None]]:
    """Raises InputError where it is not installed."""
    try:
        from effnet_ray.use.serve import deploy, stop
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: pip install 'effnet-ray[serve]'"
        ) from error
    return deploy, stop


def meaning(model: str, store: str) -> str:
    """The URI of the release that is meant. Raises ReleaseError where there is none."""
    if "/" in model:
        return storage.absolute(model)
    return ModelStore(storage.absolute(store)).find(model).uri


def _ticks(seconds: float) -> Iterator[None]:
    """Now and then, until Ctrl-C."""
    try:
        while True:
            time.sleep(seconds)
            yield
    except KeyboardInterrupt:
        return


def _follow(flags: Serve, uri: str, people: People, deploy: Deploy, ticks: Iterator[None]) -> str:
    """Roll to whatever the model means at each tick; what was served last.

    What cannot be served is told, and what is served stays.
    """
    told = ""
    for _ in ticks:
        try:
            now = meaning(flags.model, flags.store)
            if now != uri:
                deploy(now, flags.serving)
                uri, told = now, ""
                people.say(f"{flags.model} means {uri} now: served")
        except EffnetRayError as error:
            if str(error) != told:
                told = str(error)
                people.say(f"{flags.model} cannot be followed: {told}; {uri} is served still")
    return uri
