"""The plan of an epoch holds for any data set, batch and number of workers."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from effnet_ray.data.class_balance import Labels
from effnet_ray.data.plan import EvalPlan, Plan, Rows, image_random
from effnet_ray.data.split_index import SplitIndex

sizes = st.lists(st.integers(1, 100), min_size=1, max_size=30).map(tuple)
epochs = st.integers(0, 1000)


@st.composite
def plain_plans(draw: st.DrawFn) -> Plan:
    """Any plan that uses every image once: batches may be larger than it, lanes many or one."""
    micro, lanes = draw(st.integers(1, 300)), draw(st.integers(1, 40))
    return Plan(SplitIndex(draw(sizes)), draw(st.integers(0, 2**31)), micro * lanes, micro)


@st.composite
def balanced_plans(draw: st.DrawFn) -> Plan:
    """Any plan that levels its classes: few or many of them, one of which may be most."""
    plan, classes = draw(plain_plans()), draw(st.integers(1, 300))
    share = np.random.default_rng(draw(st.integers(0, 99))).dirichlet(np.full(classes, 0.3))
    labels = np.random.default_rng(0).choice(classes, plan.images, p=share)
    balance = draw(st.floats(0.01, 1) | st.just(1.0))
    return replace(plan, labels=Labels.of(labels, classes), balance=balance)


plans = plain_plans() | balanced_plans()


def lane_order(plan: Plan, epoch: int, lane: int) -> Rows:
    """The whole lane."""
    chunks = [plan.chunk(epoch, lane, index) for index in range(plan.chunks_per_epoch)]
    return np.concatenate(chunks)


def all_rows(row_groups: tuple[int, ...]) -> list[tuple[int, int]]:
    """Every image, in file order."""
    return [(group, row) for group, rows in enumerate(row_groups) for row in range(rows)]


def pairs(rows: Rows) -> list[tuple[int, int]]:
    """Rows as comparable pairs."""
    return [(int(group), int(row)) for group, row, _ in rows]


def whole_epoch(plan: Plan, epoch: int) -> Rows:
    """All lanes."""
    return np.concatenate([lane_order(plan, epoch, lane) for lane in range(plan.lanes)])


def used(plan: Plan, epoch: int) -> list[int]:
    """How often each image is used in an epoch; raises where its uses are not 0, 1, 2, …"""
    uses: dict[tuple[int, int], list[int]] = {place: [] for place in all_rows(plan.split.sizes)}
    for group, row, use in whole_epoch(plan, epoch).tolist():
        uses[group, row].append(use)
    assert all(sorted(result) == list(range(len(result))) for result in uses.values())
    return [len(result) for result in uses.values()]


@given(plain_plans(), epochs)
def test_an_epoch_uses_every_image_once(plan: Plan, epoch: int) -> None:
    rows = whole_epoch(plan, epoch)
    assert sorted(pairs(rows)) == all_rows(plan.split.sizes) and not rows[:, 2].any()


@given(balanced_plans(), epochs)
def test_a_balanced_epoch_is_as_long_and_uses_the_images_of_a_class_alike(
    plan: Plan, epoch: int
) -> None:
    assert plan.labels
    uses = np.asarray(used(plan, epoch))
    assert uses.sum() == plan.images and uses.max() <= plan.max_uses
    for label in np.unique(plan.labels.values):
        of_class = uses[plan.labels.values == label]
        assert of_class.max() - of_class.min() <= 1


@given(balanced_plans(), epochs, epochs)
def test_a_class_is_used_as_often_in_every_epoch(plan: Plan, one: int, other: int) -> None:
    assert plan.labels
    sums = [np.bincount(plan.labels.values, used(plan, epoch)) for epoch in (one, other)]
    assert np.array_equal(*sums)


@given(balanced_plans(), epochs)
def test_classes_of_one_size_leave_the_plan_as_it_is(plan: Plan, epoch: int) -> None:
    alike = replace(plan, labels=Labels.of(np.arange(plan.images), plan.images))
    plain = replace(plan, labels=None, balance=0.0)
    assert np.array_equal(whole_epoch(alike, epoch), whole_epoch(plain, epoch))


@pytest.mark.parametrize(
    ("sizes", "seed", "batch", "micro", "epoch", "digest"),
    [
        ((64,) * 30 + (17,), 0, 64, 16, 0, "0ad6cc24fcee5ce7"),
        ((5, 1, 100, 33), 7, 12, 4, 3, "cdb55b595b7fce0c"),
        ((64,) * 16_000, 1, 256, 64, 29, "30a7a4dfb4e65d62"),
    ],
)
def test_the_plan_of_a_seed_stays_what_it_is(
    sizes: tuple[int, ...], seed: int, batch: int, micro: int, epoch: int, digest: str
) -> None:
    """Else a run that another version began would go on with images it has used."""
    plan, output = Plan(SplitIndex(sizes), seed, batch, micro), hashlib.sha256()
    for lane in range(plan.lanes):
        for index in range(min(plan.chunks_per_epoch, 20)):
            output.update(plan.chunk(epoch, lane, index)[:, :2].astype("<i8").tobytes())
    assert output.hexdigest()[:16] == digest


@given(plans)
def test_lanes_fill_every_global_batch_and_only_the_last_is_short(plan: Plan) -> None:
    for step in range(plan.steps_per_epoch):
        given_by = [plan.lane_rows(step, lane) for lane in range(plan.lanes)]
        assert sum(given_by) == min(plan.batch_size, plan.images - step * plan.batch_size) > 0
        assert max(given_by) <= plan.micro_batch and max(given_by) - min(given_by) <= 1


@given(plans, epochs)
def test_a_lane_holds_what_its_steps_use(plan: Plan, epoch: int) -> None:
    for lane in range(plan.lanes):
        used = sum(plan.lane_rows(step, lane) for step in range(plan.steps_per_epoch))
        assert used == plan.lane_length(lane) == len(lane_order(plan, epoch, lane))


@given(plans, epochs, st.data())
def test_resuming_at_any_step_is_the_tail_of_never_stopping(
    plan: Plan, epoch: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    lane = data.draw(st.integers(0, plan.lanes - 1))
    first, skip = divmod(step, plan.chunk_steps)
    resumed = [plan.chunk(epoch, lane, first, skip_steps=skip)]
    resumed += [
        plan.chunk(epoch, lane, index) for index in range(first + 1, plan.chunks_per_epoch)
    ]
    tail = lane_order(plan, epoch, lane)[step * plan.micro_batch :]
    assert np.array_equal(np.concatenate(resumed), tail)


@given(plans, st.integers(1, 50))
def test_workers_share_all_lanes_for_any_number_of_workers(plan: Plan, workers: int) -> None:
    shared = [lane for rank in range(workers) for lane in plan.workers_lanes(rank, workers)]
    assert sorted(shared) == list(range(plan.lanes))


@given(plans, epochs)
def test_the_order_is_a_function_of_the_plan(plan: Plan, epoch: int) -> None:
    again = pickle.loads(pickle.dumps(plan))  # as another process has it
    assert again == plan and hash(again) == hash(plan)
    for lane in range(plan.lanes):
        assert np.array_equal(lane_order(plan, epoch, lane), lane_order(again, epoch, lane))


@given(st.integers(0, 2**31), epochs, epochs)
def test_epochs_and_seeds_differ(seed: int, one: int, other: int) -> None:
    assume(one != other)
    plan, reseeded = (
        Plan(SplitIndex((64,) * 8), seed, 64, 32),
        Plan(SplitIndex((64,) * 8), seed + 1, 64, 32),
    )
    assert not np.array_equal(lane_order(plan, one, 0), lane_order(plan, other, 0))
    assert not np.array_equal(lane_order(plan, one, 0), lane_order(reseeded, one, 0))


@given(st.integers(0, 2**31), epochs, st.integers(0, 2**40))
def test_an_images_draws_are_its_own_and_the_epochs(seed: int, epoch: int, image: int) -> None:
    def draw(*key: int) -> list[int]:
        return [random.getrandbits(62) for random in [image_random(*key)] * 2]

    assert draw(seed, epoch, image) == draw(seed, epoch, image) == draw(seed, epoch, image, 0)
    others = [(seed + 1, epoch, image), (seed, epoch + 1, image), (seed, epoch, image + 1),
              (seed, epoch, image, 1), (seed, epoch, image, 2)]  # fmt: skip
    assert len({tuple(draw(*other)) for other in others}) == len(others)
    assert all(draw(seed, epoch, image) != draw(*other) for other in others)


def test_the_images_of_a_shard_are_spread_over_the_epoch() -> None:
    shards, groups_in_shard = 32, 16
    plan = Plan(SplitIndex((64,) * (shards * groups_in_shard)), 0, 128, 32)
    when: list[list[float]] = [[] for _ in range(shards)]
    for lane in range(plan.lanes):
        for place, (group, *_) in enumerate(lane_order(plan, 0, lane)):
            when[group // groups_in_shard].append(place / plan.lane_length(lane))
    deviation = [float(np.std(places)) for places in when]  # 0.289 were they anywhere at random
    assert min(deviation) > 0.2 and abs(float(np.mean(deviation)) - 0.289) < 0.02


def test_neighbours_in_a_row_group_part_ways() -> None:
    plan = Plan(SplitIndex((64,) * 512), 0, 128, 32)
    groups = lane_order(plan, 0, 0)[:, 0].reshape(-1, plan.micro_batch)
    largest = [np.unique(step, return_counts=True)[1].max() for step in groups]
    assert np.mean(largest) < plan.micro_batch / 2


def test_a_chunk_of_a_million_images_is_read_from_few_row_groups() -> None:
    plan = Plan(SplitIndex((64,) * 16_000), 0, 256, 64)
    for epoch, lane, index in ((0, 0, 0), (29, 3, plan.chunks_per_epoch // 2)):
        rows = plan.chunk(epoch, lane, index)
        assert len(set(pairs(rows))) == plan.chunk_steps * plan.micro_batch
        assert len(np.unique(rows[:, 0])) <= len(rows) // 64 + 1


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_chunk_of_a_balanced_million_is_read_from_few_row_groups(balance: float) -> None:
    labels = Labels.of(np.random.default_rng(0).random(64 * 16_000) < 0.01, 2)
    plan = Plan(SplitIndex((64,) * 16_000), 0, 256, 64, labels, balance)
    for epoch, lane, index in ((0, 0, 0), (29, 3, plan.chunks_per_epoch // 2)):
        rows = plan.chunk(epoch, lane, index)
        assert len(np.unique(rows, axis=0)) == plan.chunk_steps * plan.micro_batch
        assert len(np.unique(rows[:, 0])) <= 3 * len(rows) // 64 + 2


def test_an_images_uses_are_spread_over_a_balanced_epoch() -> None:
    labels = Labels.of(np.random.default_rng(0).random(64 * 500) < 0.01, 2)
    rows = lane_order(Plan(SplitIndex((64,) * 500), 0, 64, 64, labels, 1.0), 0, 0)
    image = rows[:, 0] * 64 + rows[:, 1]
    places = [np.flatnonzero(image == i) / len(rows) for i in np.flatnonzero(labels.values)]
    deviation = [float(np.std(when)) for when in places]  # 0.289 were they anywhere at random
    assert np.mean(deviation) > 0.2


@given(sizes)
def test_eval_chunks_are_the_split_once_in_file_order(row_groups: tuple[int, ...]) -> None:
    plan = EvalPlan(SplitIndex(row_groups))
    rows = np.concatenate([plan.chunk(index) for index in range(plan.chunks)])
    assert pairs(rows) == all_rows(row_groups)


@settings(max_examples=50)
@given(sizes, st.integers(1, 50))
def test_workers_share_all_eval_chunks(row_groups: tuple[int, ...], workers: int) -> None:
    plan = EvalPlan(SplitIndex(row_groups))
    shared = [index for rank in range(workers) for index in plan.workers_chunks(rank, workers)]
    assert sorted(shared) == list(range(plan.chunks))
