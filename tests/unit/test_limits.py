"""What control groups allow: processors and memory, in both versions, nested, in containers and without limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlex_feat.runtime import cgroups, cpu

UNLIMITED = "9223372036854771712"  # what version 1 writes


def tree(root: Path, groups: str, mounts: list[tuple[str, str, str, str]], files: dict[str, str]) -> Path:
    """A made-up system: /proc/self/cgroup, mounts as (root, mount point, type, options), and files of groups."""
    place = root / "proc/self"
    place.mkdir(parents=True)
    (place / "cgroup").write_text(groups)
    lines = [
        f"{31 + i} 23 0:{28 + i} {top} {point} rw,relatime shared:{i} - {kind} {kind} {options}\n"
        for i, (top, point, kind, options) in enumerate(mounts)
    ]
    (place / "mountinfo").write_text("23 1 0:20 / /proc rw - proc proc rw\n" + "".join(lines))
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = [("/", "/sys/fs/cgroup", "cgroup2", "rw")]
V1 = [
    ("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
    ("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
]
CPU, MEMORY = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("quota", "processors"),
    [("150000 100000", 2), ("50000 100000", 1), ("400000 100000", 4), ("300000 150000", 2), ("max 100000", None)],
)
def test_a_quota_of_version_2_is_rounded_up_to_whole_processors(tmp_path, quota, processors):
    root = tree(tmp_path, "0::/job\n", V2, {"sys/fs/cgroup/job/cpu.max": quota})
    assert cgroups.processors(root) == processors


@pytest.mark.parametrize(
    ("quota", "period", "processors"), [("250000", "100000", 3), ("1000", "100000", 1), ("-1", "100000", None)]
)
def test_a_quota_of_version_1(tmp_path, quota, period, processors):
    files = {f"{CPU}/docker/a1/cpu.cfs_quota_us": quota, f"{CPU}/docker/a1/cpu.cfs_period_us": period}
    root = tree(tmp_path, "4:cpu,cpuacct:/docker/a1\n3:memory:/\n", V1, files)
    assert cgroups.processors(root) == processors


def test_the_tightest_of_the_group_and_its_parents_counts(tmp_path):
    files = {
        "sys/fs/cgroup/slurm/cpu.max": "200000 100000",
        "sys/fs/cgroup/slurm/job/cpu.max": "max 100000",
        "sys/fs/cgroup/slurm/job/step/cpu.max": "800000 100000",
        "sys/fs/cgroup/slurm/memory.max": "8000",
        "sys/fs/cgroup/slurm/job/memory.max": "max",
        "sys/fs/cgroup/slurm/job/step/memory.max": "9000",
        "sys/fs/cgroup/other/cpu.max": "100000 100000",  # of somebody else
        "sys/fs/cgroup/other/memory.max": "1",
    }
    root = tree(tmp_path, "0::/slurm/job/step\n", V2, files)
    assert (cgroups.processors(root), cgroups.memory(root)) == (2, 8000)


def test_a_container_that_sees_its_own_part_of_the_hierarchy(tmp_path):
    """Without a namespace of control groups /proc tells the host's path; the mount point is the group itself."""
    mounts = [("/docker/a1", "/sys/fs/cgroup/memory", "cgroup", "rw,memory")]
    files = {f"{MEMORY}/memory.limit_in_bytes": "500", f"{MEMORY}/inner/memory.limit_in_bytes": "400"}
    assert cgroups.memory(tree(tmp_path / "a", "3:memory:/docker/a1\n", mounts, files)) == 500
    assert cgroups.memory(tree(tmp_path / "b", "3:memory:/docker/a1/inner\n", mounts, files)) == 400
    assert cgroups.memory(tree(tmp_path / "c", "3:memory:/../elsewhere\n", mounts, files)) == 500


def test_both_versions_at_once_and_a_mount_point_with_a_space(tmp_path):
    mounts = [*V1, ("/", "/sys/my\\040groups", "cgroup2", "rw")]
    files = {f"{MEMORY}/a/memory.limit_in_bytes": "700", "sys/my groups/b/cpu.max": "100000 100000"}
    root = tree(tmp_path, "3:memory:/a\n1:name=systemd:/c\n0::/b\n", mounts, files)
    assert (cgroups.processors(root), cgroups.memory(root)) == (1, 700)


def test_no_limit_is_no_limit(tmp_path, monkeypatch):
    files = {f"{MEMORY}/memory.limit_in_bytes": UNLIMITED, f"{CPU}/cpu.cfs_quota_us": "-1"}
    root = tree(tmp_path / "a", "4:cpu,cpuacct:/\n3:memory:/\n", V1, files)
    assert cgroups.processors(root) is None and cgroups.memory(root) == int(UNLIMITED)
    assert cgroups.processors(tmp_path / "nothing") is None and cgroups.memory(tmp_path / "nothing") is None
    monkeypatch.setattr(cgroups, "memory", lambda: int(UNLIMITED))
    assert cpu.memory_limit() < 2**50  # the machine's


def test_threads_and_memory_follow_the_limits(monkeypatch, tmp_path):
    for number in range(8):
        topology = tmp_path / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(str(number))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cgroups, "processors", lambda: 3)
    monkeypatch.setattr(cgroups, "memory", lambda: 2**20)
    assert (cpu.cpu_count(), cpu.physical_cores(tmp_path), cpu.memory_limit()) == (3, 3, 2**20)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5})  # the narrower of both
    assert (cpu.cpu_count(), cpu.physical_cores(tmp_path)) == (2, 2)
