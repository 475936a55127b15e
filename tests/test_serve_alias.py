"""`serve` follows an alias: what is loaded, refused and retried. Without Ray."""

import io
from collections.abc import Callable, Iterator

import pytest
from support.releases import released

from effnet_ray.cli import serve
from effnet_ray.cli.serve import Serve
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import (
    EffnetRayError,
    EvaluationError,
    ReleaseError,
    ReplicaStorageError,
    StorageError,
)
from effnet_ray.inference.options import ServeOptions
from effnet_ray.release.store import ModelStore


class Followed:
    """Three ticks after `birds@live` moved from v1 to v2, where serving v2 fails at first."""

    def __init__(self, store: str, failures: list[EffnetRayError]) -> None:
        self.first, self.second = (f"{store}/birds/v000{version}" for version in (1, 2))
        self._store, self._failures = store, failures
        self.asked = list[str]()
        said = io.StringIO()
        with Terminal(said) as people:
            flags = Serve(model="birds@live", store=store)
            self.served = serve.follow(flags, self.first, people, self._deploy, self._ticks())
        self.said = said.getvalue()

    def _deploy(self, uri: str, serving: ServeOptions) -> None:
        self.asked.append(uri)
        if uri == self.second and self._failures:
            raise self._failures.pop(0)

    def _ticks(self) -> Iterator[None]:
        ModelStore(self._store).promote("birds@v2", "live", force=True)
        yield from (None,) * 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with two releases."""
    folder = tmp_path_factory.mktemp("followed")
    released(folder / "a", store=folder / "store")
    released(folder / "b", store=folder / "store", seed=5)
    return ModelStore(str(folder / "store"))


@pytest.fixture
def follow(store: ModelStore) -> Callable[..., Followed]:
    store.promote("birds@v1", "live", force=True)
    return lambda *failures: Followed(store.uri, list(failures))


def test_what_storage_did_not_give_is_said_once_and_tried_again(
    follow: Callable[..., Followed],
) -> None:
    seen = follow(StorageError("no answer"), StorageError("no answer"))
    assert seen.served == seen.second and seen.asked == [seen.second] * 3
    assert seen.said.count("no answer") == 1 and "switched" in seen.said.splitlines()[-1]


def test_what_storage_did_not_give_to_a_replica_is_tried_again(
    follow: Callable[..., Followed],
) -> None:
    seen = follow(ReplicaStorageError("served still: the other"))
    assert seen.asked == [seen.second, seen.first, seen.second]  # what was, meanwhile
    assert seen.served == seen.second


@pytest.mark.parametrize("kind", [ReleaseError, EvaluationError])
def test_what_cannot_be_served_is_refused_for_good(
    follow: Callable[..., Followed], kind: type[EffnetRayError]
) -> None:
    seen = follow(kind("not this one"))
    assert seen.served == seen.first and seen.asked.count(seen.second) == 1
    assert seen.said.count("not this one") == 1
