"""How much memory and disk there is."""

from pathlib import Path

import psutil

from daemon.machine import disk, limits, memory_limit


def test_a_container_may_have_less_than_the_machine(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total
    file, none = tmp_path / "memory.max", tmp_path / "none"
    assert memory_limit([none]) == machine
    for text, limit in (("max\n", machine), ("1073741824\n", 1 << 30), (str(1 << 62), machine)):
        file.write_text(text)
        assert memory_limit([none, file]) == limit


def test_a_service_of_systemd_has_the_least_of_the_groups_that_it_is_in(tmp_path: Path) -> None:
    service = tmp_path / "system.slice" / "afresh.service"
    service.mkdir(parents=True)
    (service / "memory.max").write_text("max")
    (service.parent / "memory.max").write_text("2000000")
    found = limits("1:name=systemd:/other\n0::/system.slice/afresh.service\n", tmp_path)
    assert memory_limit(found) == 2_000_000
    (service / "memory.max").write_text("1000000")
    assert memory_limit(found) == 1_000_000
    assert all(file.is_relative_to(tmp_path) for file in found)


def test_what_this_machine_says_can_be_read() -> None:
    assert 0 < memory_limit() <= psutil.virtual_memory().total


def test_the_disk_is_the_folders(tmp_path: Path) -> None:
    size, free = disk(tmp_path)
    assert 0 < free <= size
    assert disk(tmp_path / "none") == (0, 0)
