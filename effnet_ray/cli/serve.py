"""`serve`: answer HTTP requests with a release."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from effnet_ray.cli.flags import default_store
from effnet_ray.cli.parsing import parse
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import (
    EffnetRayError,
    EvaluationError,
    IncompleteReleaseError,
    InputError,
    RecipeError,
    ReplicaStorageError,
    StorageError,
)
from effnet_ray.inference.options import ServeOptions
from effnet_ray.placement import Placement

DAY_S = 24 * 3600


@dataclass(frozen=True)
class Serve:
    """Serve a release over HTTP until Ctrl-C: POST an image, get its labels."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or the URI of its folder. When the alias
    moves to another release, the server switches to it."""
    store: str = ""
    """The model store. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    serving: Annotated[tyro.conf.OmitArgPrefixes[ServeOptions], tyro.conf.arg(name="Server")] = (
        field(default_factory=ServeOptions)
    )
    follow_every: float = 30
    """Seconds between checks of the alias; at most a day (86400)."""
    local: bool = False
    """Use this machine only, even if the job was submitted to a cluster."""
    verbose: bool = False
    """Show Ray's own logs."""


def serve_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `serve`."""
    flags = parse(Serve, argv, Serve(tyro.MISSING, store=default_store()))
    if not 0 < flags.follow_every <= DAY_S:
        raise RecipeError(
            f"follow_every is {flags.follow_every:g} s: expected more than 0 and at most {DAY_S}"
        )
    from effnet_ray.release.store import release_uri

    # First, because the other imports take seconds: a wrong name fails at once.
    uri = release_uri(flags.model, flags.store)
    server, options = _import_server(), flags.serving
    from effnet_ray.release.load import load_release
    from effnet_ray.runtime import session

    server.check_port(options)
    load_release(uri, "")  # refuse a damaged release before Ray starts
    placement = Placement(workers=str(options.replicas), gpus_per_worker=options.gpus_per_replica)
    url = f"http://{options.host}:{options.port}/"
    logging.getLogger("ray.serve").setLevel(logging.INFO if flags.verbose else logging.ERROR)
    with Terminal() as terminal:
        cluster = session.connect(placement, local=flags.local, verbose=flags.verbose)
        terminal.print(f"Ray: {cluster}")
        session.request_resources(placement, [uri])
        server.start(options)
        try:
            server.deploy(uri, options)
            _print_ready(terminal, flags.model, uri, url)
            served = follow(flags, uri, terminal, server.deploy, _ticks(flags.follow_every))
        finally:
            server.stop()
    return {"model": flags.model, "release_uri": served, "url": url}


Deploy = Callable[[str, ServeOptions], None]


def _import_server() -> Any:
    """The module `inference.serve`. Raises InputError if Ray Serve is not installed."""
    try:
        from effnet_ray.inference import serve
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: pip install 'effnet-ray[serve]'"
        ) from error
    return serve


def _print_ready(terminal: Terminal, model: str, uri: str, url: str) -> None:
    terminal.print_summary(
        f"serving {model}",
        {"release": uri, "try": f"curl --data-binary @photo.jpg {url}", "stop": "Ctrl-C"},
    )


def _ticks(seconds: float) -> Iterator[None]:
    """Yield every `seconds` seconds until Ctrl-C."""
    try:
        while True:
            time.sleep(seconds)
            yield
    except KeyboardInterrupt:
        return


def follow(
    flags: Serve, uri: str, terminal: Terminal, deploy: Deploy, ticks: Iterator[None]
) -> str:
    """Switch to the release that the model refers to, at each tick; return the last one served.

    A release that cannot be served is reported once, and the current one stays. It is tried again
    only if the reason may pass.
    """
    from effnet_ray.release.store import release_uri

    refused = reported = ""
    for _ in ticks:
        latest = refused
        try:
            latest = release_uri(flags.model, flags.store)
            if latest not in (uri, refused):
                deploy(latest, flags.serving)
                uri, refused, reported = latest, "", ""
                terminal.print(f"{flags.model} now points to {uri}: switched to it")
        except EffnetRayError as error:
            refused = refused if _may_pass(error) else latest
            if str(error) != reported:
                reported = str(error)
                terminal.print(f"cannot switch {flags.model}: {reported}; still serving {uri}")
            if isinstance(error, EvaluationError):  # else Ray Serve keeps trying the new release
                with suppress(EffnetRayError):
                    deploy(uri, flags.serving)
    return uri


def _may_pass(error: EffnetRayError) -> bool:
    """Whether the next try may work: storage failed, or the release is still being copied."""
    return isinstance(error, StorageError | ReplicaStorageError | IncompleteReleaseError)
