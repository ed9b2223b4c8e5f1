"""The state folder's disk fills up, or gives back other bytes."""

import pytest

from benchmarks.faults import disks
from benchmarks.faults.service import Service
from tests.faults.conftest import Lab

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]


def test_the_disk_is_full_for_a_while(of: Service, lab: Lab) -> None:
    if not lab.small_disk:
        pytest.skip("a small disk to fill is a tmpfs, and only root may mount one")
    outcome = disks.full(of, 1, 1)
    assert outcome.ok, outcome


def test_bits_of_the_newest_snapshots_and_of_the_release_flip(of: Service) -> None:
    outcome = disks.damaged(of, 1, 2)
    assert outcome.ok, outcome
