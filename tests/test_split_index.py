"""Where a split's images are: arrays that agree with counting in Python."""

from itertools import accumulate

import numpy as np
from hypothesis import given, strategies as st

from effnet_ray.data.split_index import SplitIndex

shards = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=9)


@given(shards)
def test_every_image_has_a_row_group_and_every_row_group_a_shard(shards: list[list[int]]) -> None:
    index = SplitIndex.of(shards)
    groups = [(shard, rows) for shard, sizes in enumerate(shards) for rows in sizes]
    rows = [(group, row) for group, (_, size) in enumerate(groups) for row in range(size)]
    assert index.images == len(rows) == index.ends[-1] == index.first_images[-1]
    group, row = index.locate(np.arange(len(rows)))
    assert list(zip(group.tolist(), row.tolist(), strict=True)) == rows
    firsts = [first for sizes in shards for first in accumulate([0, *sizes[:-1]])]
    shard, first = index.shards(np.arange(len(groups)))
    assert (shard.tolist(), first.tolist()) == ([number for number, _ in groups], firsts)
    assert index.first_groups.tolist() == list(accumulate([0, *map(len, shards)]))
    assert index.first_images.tolist() == list(accumulate([0, *map(sum, shards)]))


def test_an_empty_split_has_no_images() -> None:
    assert SplitIndex.of([]).images == 0
    assert SplitIndex.of([]).first_images.tolist() == [0]
