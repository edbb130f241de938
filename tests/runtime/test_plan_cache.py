"""What TensorRT made on this machine is kept whole, private and checked, or made again."""

import errno
import multiprocessing
import os
import time

import pytest

from wdm_runtime.engines.plan_cache import PlanCache
from wdm_runtime.errors import EngineError

KEY = {"what": "plan", "graph": "ab12", "batch": 4}
PLAN = bytes(range(256)) * 64


@pytest.fixture
def notes():
    return []


@pytest.fixture
def cache(tmp_path, notes):
    return PlanCache(tmp_path / "cache" / "plans", notes.append)


def entry_file(cache):
    (path,) = cache.folder.glob("*.entry")
    return path


def test_what_was_written_is_read_back_and_only_under_its_key(cache, notes):
    assert cache.read(KEY) is None
    cache.write(KEY, PLAN)
    assert cache.read(KEY) == PLAN
    for name, value in (("batch", 8), ("graph", "ab13"), ("version", "11.4")):
        assert cache.read({**KEY, name: value}) is None
    assert notes == []


def test_folder_and_entries_are_this_users_alone(cache):
    previous = os.umask(0)
    try:
        cache.write(KEY, PLAN)
    finally:
        os.umask(previous)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert entry_file(cache).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"x",
        lambda data: data[:-5] + b"zzzzz",
        lambda data: data.replace(b'"batch": 4', b'"batch": 8'),
    ],
    ids=["last byte", "half", "empty", "longer", "altered", "of another key"],
)
def test_a_damaged_entry_is_removed_with_a_note(cache, notes, damage):
    cache.write(KEY, PLAN)
    path = entry_file(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read(KEY) is None
    assert len(notes) == 1 and str(path) in notes[0]
    assert not path.exists()
    cache.write(KEY, PLAN)
    assert cache.read(KEY) == PLAN


def test_a_folder_others_may_write_to_is_refused(cache):
    cache.write(KEY, PLAN)
    cache.folder.chmod(0o770)
    for use in (cache.read, lambda key: cache.write(key, PLAN)):
        with pytest.raises(EngineError, match=r"mode 770.*XDG_CACHE_HOME"):
            use(KEY)


def test_an_entry_others_may_write_to_is_refused(cache):
    cache.write(KEY, PLAN)
    entry_file(cache).chmod(0o666)
    with pytest.raises(EngineError, match="mode 666"):
        cache.read(KEY)


def test_a_folder_of_somebody_else_is_refused(cache, monkeypatch):
    cache.write(KEY, PLAN)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(EngineError, match=f"belongs to user {owner}"):
        cache.read(KEY)


def test_a_link_is_neither_folder_nor_entry(cache, tmp_path, notes):
    cache.write(KEY, PLAN)
    path = entry_file(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.read(KEY) is None and len(notes) == 1
    cache.folder.rename(tmp_path / "moved")
    cache.folder.symlink_to(tmp_path / "moved")
    with pytest.raises(EngineError, match="is not a folder"):
        cache.read(KEY)


def test_a_full_disk_leaves_a_note_and_no_half_entry(cache, notes, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    cache.write(KEY, PLAN)
    assert len(notes) == 1 and "No space left" in notes[0] and "not kept" in notes[0]
    assert list(cache.folder.iterdir()) == []
    assert cache.read(KEY) is None


def test_where_nothing_can_be_kept_work_goes_on(tmp_path, notes):
    (tmp_path / "file").write_text("in the way")
    cache = PlanCache(tmp_path / "file" / "plans", notes.append)
    assert cache.read(KEY) is None
    with cache.only_one(KEY):
        cache.write(KEY, PLAN)
    assert notes and "not kept" in notes[-1]


def test_without_a_folder_nothing_is_kept_and_work_goes_on(notes):
    cache = PlanCache(None, notes.append)
    with cache.only_one(KEY):
        cache.write(KEY, PLAN)
    cache.remove(KEY)
    assert cache.read(KEY) is None and notes == []


def test_old_entries_go_and_used_ones_stay(cache):
    cache.write(KEY, PLAN)
    for batch in range(100, 240):
        os.utime(entry_of(cache, KEY), ns=(2**62, 2**62))
        cache.write({**KEY, "batch": batch}, b"x")
    assert cache.read(KEY) == PLAN
    assert cache.read({**KEY, "batch": 239}) == b"x" and cache.read({**KEY, "batch": 100}) is None
    assert len(list(cache.folder.glob("*.entry"))) == 128


def test_what_bench_makes_of_two_engines_keeps_the_plans_of_runs(cache):
    cache.write(KEY, PLAN)
    for made in range(34):  # of TensorRT and TensorRT-RTX: graphs, batches, kernels and timings
        cache.write({**KEY, "batch": made, "what": "bench"}, b"x")
    assert cache.read(KEY) == PLAN


def entry_of(cache, key):
    (path,) = (p for p in cache.folder.glob("*.entry") if p.stat().st_size > len(PLAN))
    return path


def build_once(folder, barrier, built):
    cache = PlanCache(folder, print)
    barrier.wait()
    with cache.only_one(KEY):
        if cache.read(KEY) is None:
            time.sleep(0.2)
            built.put(os.getpid())
            cache.write(KEY, PLAN)


def test_two_processes_build_one_plan(cache):
    context = multiprocessing.get_context("spawn")
    barrier, built = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=build_once, args=(cache.folder, barrier, built)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    builder = built.get(timeout=30)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert builder in [worker.pid for worker in workers] and built.empty()
    assert cache.read(KEY) == PLAN
