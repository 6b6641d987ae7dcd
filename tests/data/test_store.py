"""Remote stores: byte ranges, retries, and the local cache with its limit."""

from __future__ import annotations

import errno
import importlib.util
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
import torch
from prepared_sets import prepare_here, write_clips

from diffmavil.config import AudioConfig, Config, DataConfig, ModelConfig, TrainConfig, VideoConfig
from diffmavil.config.errors import TooManyBadClips
from diffmavil.data.loader import make_loader
from diffmavil.data.shards.cache import RangeCache
from diffmavil.data.shards.store import TRIES, LocalStore, RemoteStore, StoreError
from diffmavil.data.sources import split_source

MODEL = ModelConfig(
    video=VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), audio=AudioConfig(frames=48, mels=64)
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    prepare_here(write_clips(folder / "clips", 5), folder / "out", per_shard=2)
    return folder / "out"


def batches(root: str, cache: Path, steps: int = 3, workers: int = 0, **data) -> list:
    settings = DataConfig(root=root, cache=str(cache), workers=workers, prefetch=1, **data)
    config = Config(model=MODEL, data=settings, train=TrainConfig(batch_size=2))
    with make_loader(config, split_source(settings).train, steps=steps) as loader:
        return list(islice(loader, steps))


def assert_same(left: list, right: list) -> None:
    assert torch.equal(torch.cat([b.video for b in left]), torch.cat([b.video for b in right]))
    assert torch.equal(torch.cat([b.wave for b in left]), torch.cat([b.wave for b in right]))


@pytest.fixture
def memory(shards: Path) -> Iterator[str]:
    import fsspec

    fs = fsspec.filesystem("memory")
    for path in shards.iterdir():
        if path.is_file():
            fs.pipe_file(f"/set/{path.name}", path.read_bytes())
    yield "memory://set"
    fs.rm("/set", recursive=True)


def test_memory(shards: Path, memory: str, tmp_path: Path) -> None:
    assert_same(batches(memory, tmp_path), batches(str(shards), tmp_path))


def test_what_is_damaged_in_the_cache_is_read_again(shards: Path, memory: str, tmp_path: Path) -> None:
    first = batches(memory, tmp_path)
    cached = [path for path in (tmp_path / "ranges").rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(cached) == 5
    for path in cached:
        path.write_bytes(b"\0" * path.stat().st_size)
    assert_same(batches(memory, tmp_path), first)
    assert not any(path.read_bytes().startswith(b"\0\0\0\0\0\0") for path in cached)


class Server(BaseHTTPRequestHandler):
    """Files of a folder, with byte ranges; the first `failing` answers are errors."""

    folder = Path()
    failing = 0
    ranges = True
    asked = 0

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        kind = type(self)
        kind.asked += 1
        path = kind.folder / self.path.lstrip("/")
        if kind.failing > 0:
            kind.failing -= 1
            self.send_error(503)
        elif not path.is_file():
            self.send_error(404)
        else:
            data = path.read_bytes()
            wanted = self.headers.get("Range") if kind.ranges else None
            if wanted:
                first, last = wanted.removeprefix("bytes=").split("-")
                part = data[int(first) : int(last) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
                data = part
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[tuple[str, type[Server]]]:
    if not all(importlib.util.find_spec(name) for name in ("aiohttp", "requests")):
        pytest.skip("http needs the extra `remote` (aiohttp, requests)")
    kind = type("Handler", (Server,), {"folder": shards})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", kind
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("workers", [0, 1])
def test_http(shards: Path, server: tuple[str, type[Server]], tmp_path: Path, workers: int) -> None:
    url, kind = server
    expected = batches(str(shards), tmp_path)
    assert_same(batches(url, tmp_path, workers=workers), expected)
    asked = kind.asked
    assert_same(batches(url, tmp_path, workers=workers), expected)
    assert kind.asked <= asked + 4  # description and index again; the clips are in the cache


def test_http_fails_and_comes_back(server: tuple[str, type[Server]]) -> None:
    url, kind = server
    waits: list[float] = []
    store = RemoteStore(url, None, waits.append)
    kind.failing = 3
    whole = (kind.folder / "shard-000000.tar").read_bytes()
    assert store.read("shard-000000.tar", 100, 1000) == whole[100:1100]
    assert len(waits) == 3
    assert waits[2] == pytest.approx(4 * waits[0])
    kind.failing = 1000
    with pytest.raises(StoreError, match=rf"shard-000000\.tar: tried {TRIES} times"):
        store.read("shard-000000.tar", 100, 1000)


def test_http_without_what_is_needed(server: tuple[str, type[Server]], tmp_path: Path) -> None:
    url, kind = server
    store = RemoteStore(url, None, lambda seconds: None)
    with pytest.raises(StoreError, match=r"absent\.tar: is not there"):
        store.read("absent.tar", 0, 10)
    kind.ranges = False
    with pytest.raises(StoreError, match="cut off, or the server does not know byte ranges"):
        store.read("shard-000000.tar", 100, 1000)
    with pytest.raises(ValueError, match=r"data\.root='http://.*/absent': .*is not there"):
        batches(f"{url}/absent", tmp_path)


def test_a_remote_shard_that_is_gone_ends_the_run(memory: str, tmp_path: Path) -> None:
    import fsspec

    settings = DataConfig(root=memory, cache=str(tmp_path), workers=0)
    config = Config(model=MODEL, data=settings, train=TrainConfig(batch_size=2))
    clips = split_source(settings).train
    fsspec.filesystem("memory").rm("/set/shard-000001.tar")
    with pytest.raises(TooManyBadClips, match=r"shard-000001\.tar: is not there"):
        list(make_loader(config, clips, steps=5))


def test_an_unknown_store_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"data\.root='nowhere://x': cannot be opened"):
        split_source(DataConfig(root="nowhere://x"))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_cache_keeps_its_limit_and_what_was_used_last(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 100_000)
    for index in range(60):
        cache.put(str(index), bytes([index]) * 5000)
        os.utime(cache._path(str(index)), ns=(index * 10**9, index * 10**9))
        assert cache.get("0") == b"\0" * 5000  # used all the time
        assert size_of(tmp_path) <= 100_000
    assert cache.get("59") == bytes([59]) * 5000
    assert cache.get("1") is None
    assert size_of(tmp_path) > 60_000


def refuse(reason: int):
    """A system call that fails."""

    def call(*arguments: object, **named: object) -> None:
        raise OSError(reason, os.strerror(reason))

    return call


def test_a_range_of_another_owner_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an owner may set a file's times."""
    cache = RangeCache(tmp_path, 100_000)
    cache.put("a", b"1")
    monkeypatch.setattr(os, "utime", refuse(errno.EPERM))
    assert cache.get("a") == b"1"


def test_the_cache_keeps_its_limit_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", refuse(errno.ENOSYS))
    cache = RangeCache(tmp_path, 100_000)
    for index in range(60):
        cache.put(str(index), bytes(5000))
    assert size_of(tmp_path) <= 100_000


def test_the_cache_survives_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = RangeCache(tmp_path / "ok", 100_000)
    cache.put("a", b"1")
    cache.folder = tmp_path / "file"
    cache.put("b", b"2")
    assert cache.get("b") is None
    cache.put("large", b"3" * 60_000)  # would push out most of the others
    assert cache.get("large") is None


def test_a_local_store_keeps_few_files_open(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    for index in range(300):
        (tmp_path / str(index)).write_bytes(b"%03d" % index)
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(300), *range(300)]:
        assert store.read(str(index), 1, 2) == (b"%03d" % index)[1:]
    assert len(os.listdir("/proc/self/fd")) - before <= 128
    with pytest.raises(StoreError, match="cut off: no 2 bytes at 2"):
        store.read("7", 2, 2)


@pytest.mark.parametrize("reason", [errno.ESTALE, errno.EIO], ids=["stale-handle", "input-output"])
def test_a_file_server_that_comes_back_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    """The file is opened anew for each try: the old handle stays useless."""
    (tmp_path / "shard").write_bytes(b"0123456789")
    waits: list[float] = []
    opened: list[int] = []
    real_open, real_pread = os.open, os.pread

    def counted(path: str, flags: int) -> int:
        opened.append(real_open(path, flags))
        return opened[-1]

    def served(handle: int, size: int, offset: int) -> bytes:
        return real_pread(handle, size, offset) if len(waits) == 2 else refuse(reason)()  # type: ignore[return-value]

    store = LocalStore(str(tmp_path), waits.append)
    assert store.read_all("shard") == b"0123456789"
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", counted)
        patch.setattr(os, "pread", served)
        assert store.read("shard", 3, 4) == b"3456"
    assert (len(opened), len(waits)) == (3, 2)
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_a_file_server_that_does_not_come_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shard").touch()
    waits: list[float] = []
    store = LocalStore(str(tmp_path), waits.append)
    with pytest.raises(StoreError, match="absent: No such file or directory; copy the shard again"):
        store.read("absent", 0, 1)
    assert waits == [], "what is not there does not come by waiting"
    monkeypatch.setattr(os, "pread", refuse(errno.EIO))
    with pytest.raises(StoreError, match=f"shard: tried {TRIES} times: Input/output error"):
        store.read("shard", 0, 1)
    assert len(waits) == TRIES - 1
    monkeypatch.setattr(Path, "read_bytes", refuse(errno.ESTALE))
    with pytest.raises(StoreError, match=f"shard: tried {TRIES} times: Stale file handle"):
        store.read_all("shard")
