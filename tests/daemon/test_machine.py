"""How much memory and disk there is."""

from pathlib import Path

import psutil

from daemon.machine import disk, memory_limit


def test_a_container_may_have_less_than_the_machine(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total
    file, none = tmp_path / "memory.max", tmp_path / "none"
    assert memory_limit([none]) == machine
    for text, limit in (("max\n", machine), ("1073741824\n", 1 << 30), (str(1 << 62), machine)):
        file.write_text(text)
        assert memory_limit([none, file]) == limit


def test_the_disk_is_the_folders(tmp_path: Path) -> None:
    size, free = disk(tmp_path)
    assert 0 < free <= size
    assert disk(tmp_path / "none") == (0, 0)
