"""Aliases with their history, deletion, damage, hostile input."""

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.faults import Faults, proxy
from support.loop_worker import settled
from support.servers import fresh_bucket, s3_environment
from support.store_worker import files
from support.weights_releases import released

from effnet_ray import storage
from effnet_ray.cli.main import main
from effnet_ray.cli.models import models_job
from effnet_ray.errors import ReleaseError, StorageError, WeightsError
from effnet_ray.model import pretrained
from effnet_ray.release import aliases, maintenance
from effnet_ray.release.store import DeleteResult, ModelStore
from effnet_ray.release_format import layout
from effnet_ray.storage import checksummed_json, multipart, retry, s3

Refused = Callable[..., str]


@pytest.fixture(params=["disk", "moto", "rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelStore]:
    """An empty store on each kind of storage in turn."""
    if request.param == "disk":
        yield ModelStore(f"{tmp_path}/store")
        return
    with s3_environment(request.getfixturevalue(request.param)):
        yield ModelStore(f"{fresh_bucket()}/store", single_writer=request.param == "rclone")


@pytest.fixture
def local(tmp_path: Path) -> ModelStore:
    """Three versions of `pets` on a disk: 50 %, 75 % and 62.5 %."""
    store = ModelStore(f"{tmp_path}/store")
    three(store)
    return store


def three(store: ModelStore) -> None:
    for run, top1 in (("first", 0.5), ("second", 0.75), ("third", 0.625)):
        store.publish("pets", files(run, top1), {"run": run, "variant": "b0"})


def path(store: ModelStore, *parts: str) -> Path:
    return Path(store.uri, "pets", *parts)


# --- who may write


def test_sharing_a_store_on_a_server_that_ignores_preconditions_is_refused_before_training(
    rclone: str, packed: Path, tmp_path: Path, refused: Refused
) -> None:
    with s3_environment(rclone):
        bucket = fresh_bucket()
        where = ["--data", str(packed), "--runs", f"{tmp_path}/runs", "--store", f"{bucket}/store"]
        output = refused(*where)
        assert (
            "does not support safe concurrent publishing (its server ignores If-None-Match)"
            in output
        )
        assert "--single-writer" in output and list((tmp_path / "runs").iterdir()) == []
        store = ["--store", f"{bucket}/store"]
        for verb in (["promote", "pets@v1", "x"], ["delete", "pets@v1"], ["gc"]):
            assert "--single-writer" in refused(*verb, *store, job=models_job)
        assert "there is no model pets" in refused(
            "delete", "pets@v1", "--single-writer", *store, job=models_job
        )


def test_one_writer_may_be_told_by_the_environment(
    rclone: str,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with s3_environment(rclone):
        store = ["--store", fresh_bucket()]
        monkeypatch.setenv("EFFNET_SINGLE_WRITER", "1")
        assert said(capsys, "gc", *store)["removed"] == []
        monkeypatch.setenv("EFFNET_SINGLE_WRITER", "perhaps")
        assert "EFFNET_SINGLE_WRITER is 'perhaps'" in refused("gc", *store, job=models_job)


# --- aliases


def test_best_follows_the_best_release_by_itself(store: ModelStore) -> None:
    three(store)
    assert store.find("pets@best").version == 2
    moves = store.history("pets", "best")
    assert [(m.previous, m.version, m.eval_top1) for m in moves] == [(None, 1, 0.5), (1, 2, 0.75)]


def test_a_release_without_a_metric_becomes_best_never(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    store.publish("pets", {"config.json": b"{}"}, {"run": "a"})
    with pytest.raises(ReleaseError, match=r"pets@best is not in .*; it has: pets@v1"):
        store.find("pets@best")


def test_an_alias_moves_to_what_is_no_worse_and_elsewhere_by_force(store: ModelStore) -> None:
    three(store)
    store.promote("pets@v3", "champion")
    store.promote("pets@best", "champion")
    worse = r"cannot point 'champion' to pets@v1: its eval top-1 \(50.*\) is lower than v2's \(75"
    with pytest.raises(ReleaseError, match=worse):
        store.promote("pets@v1", "champion")
    assert store.find("pets@champion").version == 2
    forced = store.promote("pets@v1", "champion", force=True)
    assert forced.forced and store.find("pets@champion").version == 1
    assert store.promote("pets@v1", "champion") == forced  # already there: no new move
    moves = store.history("pets", "champion")
    assert [(m.previous, m.version) for m in moves] == [(None, 3), (3, 2), (2, 1)]
    assert [m.forced for m in moves] == [False, False, True]


def test_where_a_person_moved_best_back_publishing_leaves_it(local: ModelStore) -> None:
    local.promote("pets@v1", "best", force=True)
    local.publish("pets", files("second", 0.75), {"run": "second"})
    local.publish("pets", files("fourth", 0.25), {"run": "fourth"})
    assert local.find("pets@best").version == 1
    local.publish("pets", files("fifth", 0.8), {"run": "fifth"})
    assert local.find("pets@best").version == 5


def test_a_name_alone_is_no_release_and_what_there_is_is_named(local: ModelStore) -> None:
    with pytest.raises(ReleaseError, match=r"has no version: .*pets@v1, pets@v2, .*pets@best"):
        local.find("pets")


# --- deleting


def test_a_deleted_version_is_gone_for_good(store: ModelStore) -> None:
    three(store)
    with pytest.raises(ReleaseError, match="pets@v2 is still referenced by alias 'best'"):
        store.delete("pets@v2")
    assert store.delete("pets@v3") == DeleteResult([], None)
    assert store.versions("pets") == [1, 2]
    with pytest.raises(
        ReleaseError, match=r"pets@v3 was deleted from .*; it has: pets@v1, pets@v2"
    ):
        store.find("pets@v3")
    store.promote("pets@v2", "champion")
    done = store.delete("pets@v2", force=True)
    assert done.aliases == ["champion"] and done.best and store.find("pets@best").version == 1
    with pytest.raises(ReleaseError, match="pets@champion points to v2, which was deleted"):
        store.find("pets@champion")
    assert store.publish("pets", files("third", 0.625), {"run": "third"}).version == 4
    assert store.find("pets@best").version == 4
    assert store.versions("pets") == [1, 4]


def test_best_moves_on_from_what_is_deleted_to_the_best_that_is_left(local: ModelStore) -> None:
    local.promote("pets@v1", "best", force=True)  # by a person
    done = local.delete("pets@v1", force=True)
    assert done.best and (done.best.previous, done.best.version) == (1, 2)
    local.publish("pets", files("fourth", 0.7), {"run": "fourth"})
    local.delete("pets@v2", force=True)
    assert local.find("pets@best").version == 4
    maintenance.publish.write_tombstone(
        local.model_folder("pets"), 4, "deleted"
    )  # and the deletion died there
    assert local.delete("pets@v4").best and local.find("pets@best").version == 3
    moves = local.history("pets", "best")
    assert [move.version for move in moves] == [1, 2, 1, 2, 4, 3]
    assert local.delete("pets@v3", force=True) == DeleteResult(["best"], None)


def test_best_moves_on_to_releases_that_are_judged_by_another_figure(local: ModelStore) -> None:
    several = {"metrics.json": b'{"best": {"eval_top1": 0.9, "eval_map": 0.1}}'}
    local.publish("pets", files("fourth", 0) | several, {"run": "fourth"})
    local.promote("pets@v4", "best", force=True)
    done = local.delete("pets@v4", force=True)
    assert done.best and done.best.version == 2


def test_a_damaged_best_holds_up_no_publisher(local: ModelStore) -> None:
    path(local, "aliases/best.json").write_text("{}")
    assert local.publish("pets", files("fourth", 0.9), {"run": "fourth"}).version == 4
    assert local.find_published("pets", run="fourth") is not None
    with pytest.raises(ReleaseError, match=r"best\.json"):
        local.find("pets@best")


@pytest.mark.parametrize("data", [b"{}", b"torn", b""])
def test_an_altered_history_is_begun_anew_by_force_and_kept(
    local: ModelStore,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    data: bytes,
) -> None:
    path(local, "aliases/best.json").write_bytes(data)
    verb = ["promote", "pets@v1", "best", "--store", local.uri]
    assert "start a new history with `effnet-ray models promote --force`" in refused(
        *verb, job=models_job
    )
    output = said(capsys, *verb, "--force")
    assert "kept it as" in caplog.text
    assert (output["version"], output["previous"], output["forced"]) == (1, None, True)
    assert local.find("pets@best").version == 1
    assert [kept.read_bytes() for kept in path(local, "aliases").glob("*.altered")] == [data]
    assert "pets@best" in said(capsys, "verify", "--store", local.uri)["aliases"]


def test_a_release_that_lost_its_record_alone_has_it_again(
    local: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    record = path(local, "v0001/release.json")
    there = record.read_bytes()
    record.unlink()
    assert models_job(["verify", "--store", local.uri])["unfinished"] == ["pets@v1"]
    assert "pets@v1 is unfinished" in capsys.readouterr().err
    assert local.publish("pets", files("fourth", 0.9), {"run": "fourth"}).version == 4
    assert record.read_bytes() == there and local.versions("pets") == [1, 2, 3, 4]
    record.unlink()
    assert local.gc(stale_after_s=-60).finished == ["pets@v1"] and record.read_bytes() == there


def test_best_stays_where_a_person_moved_it_when_another_is_deleted(local: ModelStore) -> None:
    local.promote("pets@v1", "best", force=True)
    assert local.delete("pets@v3") == DeleteResult([], None)
    assert local.find("pets@best").version == 1


def test_a_deletion_that_died_after_its_tombstone_is_finished_by_gc(local: ModelStore) -> None:
    maintenance.publish.write_tombstone(local.model_folder("pets"), 3, "deleted")
    assert local.versions("pets") == [1, 2] and path(local, "v0003").exists()
    assert local.gc(stale_after_s=-60).removed == [f"{local.uri}/pets/v0003"]
    assert not path(local, "v0003").exists()
    maintenance.publish.write_tombstone(
        local.model_folder("pets"), 2, "deleted"
    )  # what `best` means
    local.gc()
    assert local.find("pets@best").version == 1


def test_gc_takes_only_what_is_older_than_the_lease_and_belongs_to_nobody(
    local: ModelStore,
) -> None:
    kept = storage.entries(local.uri, hidden=True).keys()
    for leftover in ("staging/0123456789abcdef/x", "v0009/x", "v0001/.x.123.partial"):
        path(local, leftover).parent.mkdir(parents=True, exist_ok=True)
        path(local, leftover).touch()
    (Path(local.uri) / ".probe-0").mkdir()
    (Path(local.uri) / ".probe-0/key").touch()
    assert local.gc().removed == []
    result = local.gc(stale_after_s=-60).removed
    assert len(result) == 4 and result[-1].endswith("/.probe-0")
    assert storage.entries(local.uri, hidden=True).keys() == kept


@pytest.mark.parametrize("server", ["moto", "rclone"])
def test_gc_aborts_what_publishers_began_to_upload_in_parts_and_nobody_elses(
    request: pytest.FixtureRequest, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3_environment(request.getfixturevalue(server)):
        bucket = fresh_bucket()
        store = ModelStore(f"{bucket}/store", single_writer=True)
        three(store)
        ours = ["store/pets/v0004/model.safetensors", "store/pets/staging/0123456789abcdef/x"]
        others = ["store/pets/mine.bin", "store2/pets/v0001/x", "data/train.parquet"]
        for key in (*ours, *others):
            begin = "create_multipart_upload"
            s3.client().call_s3(begin, Bucket=bucket.removeprefix("s3://"), Key=key)
        left = {each.path for each in multipart.list_unfinished_uploads(bucket)}
        assert left == {*ours, *others}
        flags = ["gc", "--store", store.uri, "--single-writer"]
        assert said(capsys, *flags, "--older-than", "200000")["uploads"] == 0  # moto's are of 2010
        assert said(capsys, *flags, "--older-than", "0")["uploads"] == len(ours)
        assert {each.path for each in multipart.list_unfinished_uploads(bucket)} == set(others)
        assert said(capsys, "verify", "--store", store.uri)["verified"]


def test_gc_works_where_uploads_cannot_be_listed_and_says_so(
    moto: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with proxy(moto) as through, s3_environment(through.endpoint):
        store = ModelStore(f"{fresh_bucket()}/store")
        three(store)
        through.faults = Faults(["501 NotImplemented"], 1, lambda _, path: "uploads" in path)
        output = said(capsys, "gc", "--store", store.uri)
        assert (output["uploads"], output["removed"]) == (0, []) and "list the uploads" in output[
            "unlisted"
        ]


# --- damage


def rewrite(store: ModelStore, alias: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """An alias's history that is sealed well and says something else."""
    place = path(store, f"aliases/{alias}.json")
    content = json.loads(place.read_bytes())
    del content["sha256"]
    change(content["history"])
    place.write_bytes(checksummed_json.seal(content))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda moves: moves.pop(0),
            "best.json: the history is missing an entry before the move to v2",
        ),
        (lambda moves: moves[0].update(record="0" * 64), "v1 is not the release that 'best' was"),
        (lambda moves: moves[1].update(version=9), "pets@best points to v9, which does not exist"),
    ],
)
def test_verify_holds_aliases_against_releases(
    local: ModelStore,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[list[dict[str, Any]]], None],
    sentence: str,
) -> None:
    local.promote("pets@v3", "champion")
    result = said(capsys, "verify", "--store", local.uri)["aliases"]
    assert result == ["pets@best", "pets@champion"]
    rewrite(local, "best", change)
    for model in ([], ["pets@best"]):
        output = refused("verify", *model, "--store", local.uri, job=models_job)
        assert re.search(sentence, output)
    assert main(models_job, ["verify", "pets", "--store", local.uri]) == 2
    assert "✓ pets@v3" in (received := capsys.readouterr().err) and "✓ pets@champion" in received


def test_a_release_without_a_seal_is_told_to_have_none(local: ModelStore) -> None:
    place = path(local, "v0001", layout.RECORD)
    record = json.loads(place.read_bytes())
    del record["sha256"]
    place.write_text(json.dumps(record))
    with pytest.raises(ReleaseError, match="has no checksum: it was altered"):
        local.find("pets@v1")


@pytest.mark.parametrize("flips", [60, pytest.param(1_000, marks=pytest.mark.long)])
def test_every_flipped_bit_is_found(local: ModelStore, flips: int) -> None:
    local.promote("pets@v3", "champion")
    draw = random.Random(0)
    every = [p for p in path(local).rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert {p.name for p in every} >= {"release.json", "model.safetensors", "best.json"}
    for number in range(flips):
        victim = every[number % len(every)]
        whole = victim.read_bytes()
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        broken = bytearray(whole)
        broken[place] ^= 1 << bit
        victim.write_bytes(broken)
        assert main(models_job, ["verify", "--store", local.uri]) == 2, (victim, place, bit)
        if victim.parent.name.startswith("v"):
            with pytest.raises(ReleaseError):
                local.find(f"pets@v{int(victim.parent.name[1:])}")
        victim.write_bytes(whole)
    assert main(models_job, ["verify", "--store", local.uri]) == 0


def test_weights_that_were_altered_are_not_trained_from(tmp_path: Path) -> None:
    folder = released(tmp_path / "plain")[1]
    store = ModelStore(f"{tmp_path}/store")
    content = {name: (folder / name).read_bytes() for name in (layout.WEIGHTS, layout.CONFIG)}
    uri = store.publish("pets", content, {"run": "r"}).uri
    recipe = settled(weights=uri)
    start = pretrained.resolve(recipe)
    assert pretrained.fetch(start, None) == content[layout.WEIGHTS]
    for name in content:
        for victim in (Path(uri, name), Path(uri, layout.RECORD)):
            whole = victim.read_bytes()
            victim.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
            with pytest.raises(ReleaseError, match="was altered"):
                pretrained.fetch(pretrained.resolve(recipe), None)
            victim.write_bytes(whole)
    assert pretrained.resolve(recipe) == start


# --- hostility


def forge(store: ModelStore, **changes: Any) -> None:
    """A release.json that is sealed well and says something else."""
    place = path(store, "v0001", layout.RECORD)
    record = json.loads(place.read_bytes()) | changes
    del record["sha256"]
    place.write_bytes(checksummed_json.seal(record))


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/passwd", "a/b", "..", "", ".hidden", "release.json", "x\n"]
)
def test_a_record_that_names_what_is_no_file_of_its_folder_is_refused(
    local: ModelStore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    forge(local, files={name: "0" * 64}, sizes={name: 6})
    with pytest.raises(ReleaseError, match="which is not a file in its folder"):
        local.find("pets@v1")
    with pytest.raises(ReleaseError, match="which is not a file in its folder"):
        pretrained.fetch(pretrained.resolve(settled(weights=str(path(local, "v0001")))), None)


@pytest.mark.parametrize(
    "changes",
    [{"files": []}, {"files": None}, {"sizes": {}}, {"files": {"a": 1}, "sizes": {"a": 1}},
     {"files": {"a": "0" * 64}, "sizes": {"a": -1}},
     {"files": {"a": "0" * 64}, "sizes": {"a": "1"}}, {"name": "cats"}, {"version": 2}],
)  # fmt: skip
def test_a_record_that_says_nonsense_is_refused(
    local: ModelStore, changes: dict[str, Any]
) -> None:
    forge(local, **changes)
    with pytest.raises(ReleaseError):
        local.find("pets@v1")


def test_a_hostile_claim_is_not_finished_outside_of_its_folder(
    local: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance.publish, "CLAIM_WAIT_S", 0)
    said = {"name": "pets", "version": 4, "run": "r", "files": {"../../x": "0" * 64}}
    path(local, "claims/v0004.json").write_bytes(
        checksummed_json.seal({**said, "sizes": {"../../x": 1}})
    )
    before = set(tmp_path.rglob("x"))
    assert local.publish("pets", files("fourth", 0.5), {"run": "fourth"}).version == 5
    assert set(tmp_path.rglob("x")) == before and local.versions("pets") == [1, 2, 3, 5]


@pytest.mark.parametrize("by", ["publish", "gc"])
def test_a_claim_larger_than_any_record_is_buried_and_blocks_nobody(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(maintenance.publish, "CLAIM_WAIT_S", 0)
    three(store)
    storage.write_bytes(f"{store.uri}/pets/claims/v0004.json", bytes(storage.RECORD_BYTES + 1))
    if by == "gc":
        assert store.gc(stale_after_s=-60).buried == ["pets@v4"]
    assert store.publish("pets", files("fourth", 0.5), {"run": "fourth"}).version == 5
    assert store.versions("pets") == [1, 2, 3, 5]


def test_an_outage_buries_nothing(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance.publish, "CLAIM_WAIT_S", 0)
    monkeypatch.setattr(retry, "GIVE_UP_S", 0.5)
    with proxy(moto) as through, s3_environment(through.endpoint):
        store = ModelStore(f"{fresh_bucket()}/store")
        three(store)
        claim(store, "fourth", files("fourth", 0.5))
        for part in ("claims/v0004", "staging/"):
            through.faults = Faults(
                ["503 SlowDown"],
                1,
                lambda method, path, part=part: part in path and method != "PUT",
            )
            with pytest.raises(StorageError, match="object storage kept failing"):
                store.gc(stale_after_s=-60)
            through.faults = Faults()
            assert store.model_folder("pets").deleted == set()
        assert store.gc(stale_after_s=-60).finished == ["pets@v4"]


def claim(store: ModelStore, run: str, given: dict[str, bytes]) -> str:
    """What a publisher leaves who dies once it has claimed v4; where it staged."""
    publishing, shelf = maintenance.publish, store.model_folder("pets")
    content = publishing.record_content(given, {"run": run})
    record = checksummed_json.seal({"name": "pets", "version": 4, "published": "x", **content})
    publishing.write_files(publishing.staging_uri(shelf, content), given)
    storage.write_bytes(shelf.claim_uri(4), record)
    return publishing.staging_uri(shelf, content)


def test_a_run_whose_publisher_died_is_finished_from_memory(store: ModelStore) -> None:
    three(store)
    given = files("fourth", 0.5)
    staged = claim(store, "fourth", given)
    storage.write_bytes(f"{staged}/README.md", b"damaged")
    assert store.publish("pets", given, {"run": "fourth"}).version == 4
    release = store.find("pets@v4")
    assert storage.read_bytes(f"{release.uri}/README.md") == given["README.md"]


def test_what_is_released_is_not_buried_for_a_damaged_claim(local: ModelStore) -> None:
    shelf = local.model_folder("pets")
    path(local, "claims/v0002.json").write_bytes(b"damaged")
    assert maintenance.publish.complete_claim(shelf, 2) and local.versions("pets") == [1, 2, 3]


def test_a_run_whose_claim_can_be_finished_by_nobody_gets_another_number(
    local: ModelStore,
) -> None:
    given = files("fourth", 0.5)
    storage.delete(claim(local, "fourth", given))
    now = {**given, "README.md": b"written anew"}
    assert local.publish("pets", now, {"run": "fourth"}).version == 5
    assert local.versions("pets") == [1, 2, 3, 5]


def test_a_forged_last_number_ends_publishing_before_anything_is_written(
    local: ModelStore,
) -> None:
    """A version of ten digits would be none."""
    path(local, f"v{layout.MAX_VERSION}").mkdir()
    path(local, f"v{layout.MAX_VERSION}/{layout.RECORD}").write_bytes(b"{}")
    before = storage.sizes(local.uri)
    with pytest.raises(ReleaseError, match="has a version 999,999,999, after which"):
        local.publish("pets", files("fourth", 0.5), {"run": "fourth"})
    assert {name for name in storage.sizes(local.uri) if "/claims/" in name} == {
        name for name in before if "/claims/" in name
    }


@pytest.mark.parametrize("data", [b"[" * 100_000, b"{" * 100, b"", b"\xff\xfe", b"9" * 9_999])
def test_what_is_no_json_is_refused(local: ModelStore, data: bytes) -> None:
    for place in ("v0001/release.json", "aliases/best.json"):
        path(local, place).write_bytes(data)
    for reference in ("pets@v1", "pets@best"):
        with pytest.raises(ReleaseError, match=r"is not valid JSON|is not a JSON object"):
            local.find(reference)
    folder = path(local, "v0002")
    (folder / layout.RECORD).unlink()
    (folder / layout.CONFIG).write_bytes(data)
    with pytest.raises(WeightsError, match="not a release"):
        pretrained.resolve(settled(weights=str(folder)))


def test_json_larger_than_any_record_is_not_read(local: ModelStore) -> None:
    for place in ("v0001/release.json", "aliases/best.json"):
        with path(local, place).open("wb") as file:
            file.truncate(50 * 2**30)
    for reference in ("pets@v1", "pets@best"):
        with pytest.raises(
            (ReleaseError, StorageError), match=r"larger than expected .* 16,000,000 bytes"
        ):
            local.find(reference)


def header(text: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text


def tensor(shape: str, offsets: str) -> bytes:
    """A file of one tensor that says this of itself, and has four bytes."""
    said = f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{offsets}]}}}}'
    return header(said.encode()) + b"1234"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header(b"{}", 2**63), id="huge header"),
        pytest.param(header(b"{}", 10**9), id="header past the end"),
        pytest.param(header(b"[]"), id="no object"),
        pytest.param(header(b'{"a":' * 5_000), id="deep"),
        pytest.param(tensor("4", "0,16"), id="short"),
        pytest.param(tensor("1", "9,4"), id="offsets"),
        pytest.param(tensor("1152921504606846976,16", "0,4"), id="overflow"),
        pytest.param(b"\x80\x04\x95\x00\x00", id="pickle"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="zip"),
        pytest.param(b"", id="empty"),
    ],
)  # fmt: skip
def test_a_forged_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    config = (released(tmp_path / "plain")[1] / layout.CONFIG).read_bytes()
    content = {layout.WEIGHTS: data, layout.CONFIG: config}
    uri = ModelStore(f"{tmp_path}/store").publish("pets", content, {"run": "r"}).uri
    with pytest.raises(WeightsError, match="are damaged"):
        pretrained.fetch(pretrained.resolve(settled(weights=uri)), None)


@pytest.mark.parametrize(
    "change",
    [{"num_classes": 10**12}, {"num_classes": -1}, {"label_names": [1]}, {"label_names": 3},
     {"pretrained_cfg": []}, {"pretrained_cfg": {"input_size": ["x"]}}, {"num_classes": "no"}],
)  # fmt: skip
def test_a_config_that_says_nonsense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = released(tmp_path / "plain")[1]
    config = json.loads((folder / layout.CONFIG).read_bytes()) | change
    (folder / layout.CONFIG).write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="not a release"):
        pretrained.resolve(settled(weights=str(folder)))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", "a@b", "a\n", "é", "x" * 101]
)
def test_a_name_that_is_no_folders_name_is_refused(tmp_path: Path, name: str) -> None:
    store = ModelStore(str(tmp_path / "store"))
    with pytest.raises(ReleaseError, match="cannot be the name of a model"):
        store.publish(name, files("a", 0.5), {"run": "a"})
    store.publish("pets", files("a", 0.5), {"run": "a"})
    for alias in (name, "v1", "v007"):
        with pytest.raises(ReleaseError, match=r"name of an alias|looks like a version"):
            store.promote("pets@v1", alias)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_file_that_cannot_be_released_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    store = ModelStore(f"{tmp_path}/store")
    with pytest.raises(ReleaseError, match="not a file in its folder"):
        store.publish("pets", {"../x": b""}, {"run": "a"})
    assert storage.entries(store.uri, hidden=True) == {}


# --- the job


def said(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(models_job, list(flags)) == 0
    answered: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answered


def test_the_verbs_say_what_they_did_as_json(
    store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    three(store)
    where = ["--store", store.uri]
    writes = [*where, "--single-writer"] if store.single_writer else where
    assert said(capsys, "promote", "pets@v3", "champion", *writes)["previous"] is None
    (model,) = said(capsys, "list", *where)["models"]
    assert model["name"] == "pets" and model["aliases"] == {"best": 2, "champion": 3}
    assert [v["eval_top1"] for v in model["versions"]] == [0.5, 0.75, 0.625]
    assert [v["variant"] for v in model["versions"]] == ["b0"] * 3
    sizes = [sum(map(len, files(r, t).values())) for r, t in (("first", 0.5), ("second", 0.75))]
    assert [v["size"] for v in model["versions"]][:2] == sizes
    assert all(v["published"].startswith("20") for v in model["versions"])
    shown = said(capsys, "show", "pets@best", *where)
    assert shown["release"] == "pets@v2" and shown["record"]["run"] == "second"
    history = said(capsys, "show", "pets", *where)["history"]
    assert [move["version"] for move in history["best"]] == [1, 2]
    assert said(capsys, "verify", "pets", *where)["verified"] == ["pets@v1", "pets@v2", "pets@v3"]
    assert said(capsys, "verify", "pets@best", *where)["verified"] == ["pets@v2"]
    output = said(capsys, "delete", "pets@v3", "--force", *writes)
    assert output == {"deleted": "pets@v3", "aliases": ["champion"], "best": None}
    nothing = {"finished": [], "buried": [], "removed": [], "uploads": 0, "unlisted": ""}
    assert said(capsys, "gc", *writes) == nothing


def test_the_table_shows_every_release_with_its_aliases(
    local: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(models_job, ["list", "--store", local.uri]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["release", "aliases", "eval", "variant", "published", "MB"]
    assert lines[2].split()[:5] == ["pets@v2", "best", "top-1", "75.00%", "B0"]
    assert len(lines) == 4


def test_a_damaged_release_is_listed_as_damaged_and_hides_no_other(
    local: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    path(local, "v0002/release.json").write_text("{}")
    (model,) = said(capsys, "list", "--store", local.uri)["models"]
    assert ["altered" in v["damaged"] for v in model["versions"]] == [False, True, False]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["show", "cats"], "there is no model cats in .*; it has: pets"),
        (
            ["show", "pets@v9"],
            "pets@v9 is not in .*; it has: pets@v1, pets@v2, pets@v3, pets@best",
        ),
        (["promote", "pets@canary", "x"], "pets@canary is not in .*; it has: pets@v1"),
        (["promote", "pets", "x"], "'pets' has no version"),
        (
            ["promote", "pets@v1", "best"],
            "cannot point 'best' to pets@v1: its eval top-1 .50.00%",
        ),
        (["promote", "pets@v1", "../x"], "'../x' cannot be the name of an alias"),
        (["delete", "pets@best"], "'pets@best' has no version"),
        (["delete", "pets@v2"], "pets@v2 is still referenced by alias 'best'"),
        (["verify", "pets@v3"], "README.md of .*v0003 was altered"),
        (["verify"], "README.md of .*v0003 was altered"),
        (["promote", "pets@v3", "x"], "README.md of .*v0003 was altered"),
        (["show", "../pets"], "'../pets' cannot be the name of a model"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    local: ModelStore, refused: Refused, flags: list[str], sentence: str
) -> None:
    path(local, "v0003/README.md").write_text("other")
    output = refused(*flags, "--store", local.uri, job=models_job)
    assert re.search(sentence, output), output


def test_a_store_that_does_not_answer_is_one_sentence(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "GIVE_UP_S", 0.5)
    with s3_environment("http://127.0.0.1:9"):
        for verb in (["list"], ["show", "pets"], ["gc"], ["promote", "pets@v1", "x"]):
            output = refused(*verb, "--store", "s3://bucket/store", job=models_job)
            assert "check AWS_ENDPOINT_URL and the network" in output


def test_a_release_is_found_by_alias_as_weights_and_a_bare_name_is_refused(
    packed: Path, tmp_path: Path, refused: Refused
) -> None:
    store = ModelStore(f"{tmp_path}/store")
    store.publish("pets", files("a", 0.5), {"run": "a"})
    flags = ["--data", str(packed), "--runs", f"{tmp_path}/runs", "--store", store.uri]
    assert "'pets' has no version" in refused(*flags, "--weights", "pets")
    output = refused(*flags, "--weights", "pets@best")
    assert f"weights {store.uri}/pets/v0001 are not a release" in output
    assert "pets@canary is not in" in refused(*flags, "--weights", "pets@canary")


def test_a_look_of_long_ago_makes_nothing_worse(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    store.publish("pets", files("first", 0.5), {"run": "first"})
    long_ago = store.model_folder("pets")
    store.publish("pets", files("second", 0.75), {"run": "second"})
    store.promote("pets@v2", "champion")
    assert aliases.update_best(long_ago) is None
    with pytest.raises(ReleaseError, match="cannot point 'champion'"):
        aliases.promote(long_ago, "champion", 1)
    assert [move.version for move in store.history("pets", "best")] == [1, 2]
