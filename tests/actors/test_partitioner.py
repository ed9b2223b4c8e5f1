"""Rows of files go where producers send their keys."""

import numpy as np

from actors.partitioner import partition_of, partitions_of


def test_keys_go_where_javas_clients_send_them() -> None:
    # Values of org.apache.kafka.common.utils.UtilsTest.testMurmur2, made positive.
    known = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    big = 1 << 31
    for key, value in known.items():
        assert partition_of(key.encode(), big) == value & 0x7FFFFFFF
        assert partitions_of([key], big).tolist() == [value & 0x7FFFFFFF]


def test_many_keys_at_once_go_where_each_goes_alone() -> None:
    rng = np.random.default_rng(0)
    keys = [rng.bytes(int(n)) for n in rng.integers(0, 40, 2000)]
    assert partitions_of(keys, 7).tolist() == [partition_of(key, 7) for key in keys]
