"""Both object stores keep the same promises: a folder, and S3 as SeaweedFS speaks it."""

import hashlib
import multiprocessing
import os
import secrets
import tracemalloc
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

from infra.servers import S3Server
from retroln.errors import (
    ConflictError,
    InputError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    SettingsError,
    UnavailableError,
)
from retroln.settings import Settings
from retroln.storage import s3_upload
from retroln.storage.base import ObjectStore
from retroln.storage.open import open_store
from retroln.storage.s3 import S3Store

MIB = 1 << 20


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Settings]:
    """An empty store's address and the settings that reach it."""
    if request.param == "file":
        return f"file://{tmp_path}/store", Settings()
    bucket = request.getfixturevalue("s3_server").make_bucket(f"b-{secrets.token_hex(6)}")
    return f"{bucket}/below/here", request.getfixturevalue("s3_settings")


@pytest.fixture
def store(place: tuple[str, Settings]) -> ObjectStore:
    return open_store(*place)


@pytest.fixture
def deliver(place: tuple[str, Settings], s3_server: S3Server, tmp_path: Path) -> Callable[..., None]:
    """Put an object as others do, without RetroLN: no sha256 recorded unless `metadata` says so."""

    def write(key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        if place[0].startswith("file"):
            path = tmp_path / "store" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            return
        bucket, _, prefix = place[0].removeprefix("s3://").partition("/")
        with closing(s3_server.client()) as client:
            client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data, Metadata=metadata or {})

    return write


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_bytes_and_files_come_back_with_their_hash(store: ObjectStore, tmp_path: Path):
    (tmp_path / "in").write_bytes(b"voxels")
    put = store.put_file(tmp_path / "in", "p1/c1/ct.nii.gz")
    assert (put.key, put.size_bytes, put.sha256) == ("p1/c1/ct.nii.gz", 6, sha256(b"voxels"))
    assert store.stat("p1/c1/ct.nii.gz") == put
    assert store.get_file("p1/c1/ct.nii.gz", tmp_path / "new" / "out") == sha256(b"voxels")
    assert (tmp_path / "new" / "out").read_bytes() == b"voxels"
    assert store.put_bytes(b"", "empty").size_bytes == 0
    assert store.get_bytes("empty") == b""


def test_a_listing_goes_by_prefix_and_leaves_hidden_names_out(store: ObjectStore, deliver):
    keys = ["a.txt", "a/b/c", "a/b.x", "a0", "Z", "ü/1"]
    for key in keys:
        store.put_bytes(key.encode(), key)
    deliver(".DS_Store", b"x")
    deliver("a/.partial-1", b"x")
    assert sorted(info.key for info in store.list()) == sorted(keys)
    assert sorted(info.key for info in store.list("a")) == sorted(k for k in keys if k.startswith("a"))
    assert sorted(info.key for info in store.list("a/")) == ["a/b.x", "a/b/c"]
    assert [info.key for info in store.list("a/b/")] == ["a/b/c"]
    assert list(store.list("nothing/here")) == []
    for info in store.list():
        described = store.stat(info.key)
        assert (info.size_bytes, info.fingerprint) == (described.size_bytes, described.fingerprint)


def test_an_empty_store_lists_nothing(store: ObjectStore):
    assert list(store.list()) == []


def test_a_long_listing_is_complete(store: ObjectStore):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put_bytes(b"x", f"many/{n:05d}"), range(1005)))
    assert [info.key for info in store.list("many/")] == [f"many/{n:05d}" for n in range(1005)]


def test_what_is_missing_is_not_found_and_leaves_nothing(store: ObjectStore, tmp_path: Path):
    store.put_bytes(b"x", "folder/object")
    for key in ("nothing", "folder", "folder/object/below"):
        with pytest.raises(NotFoundError, match="no such object"):
            store.stat(key)
        with pytest.raises(NotFoundError, match="no such object"):
            store.get_bytes(key)
        with pytest.raises(NotFoundError, match="no such object"):
            store.get_file(key, tmp_path / "out" / "file")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(NotFoundError, match="no such file"):
        store.put_file(tmp_path / "absent", "key")


def test_a_put_replaces_and_changes_the_fingerprint(store: ObjectStore):
    first = store.put_bytes(b"one", "key")
    second = store.put_bytes(b"two", "key")
    assert first.fingerprint != second.fingerprint
    assert store.stat("key").sha256 == sha256(b"two")
    assert store.get_bytes("key") == b"two"


def test_a_conditional_put_keeps_what_is_there(store: ObjectStore, tmp_path: Path):
    store.put_bytes(b"first", "key", if_absent=True)
    with pytest.raises(ConflictError, match="exists already"):
        store.put_bytes(b"second", "key", if_absent=True)
    (tmp_path / "big").write_bytes(bytes(65 * MIB))
    with pytest.raises(ConflictError, match="exists already"):
        store.put_file(tmp_path / "big", "key", if_absent=True)
    assert store.get_bytes("key") == b"first"


def test_one_of_many_racing_writers_wins(store: ObjectStore):
    def write(number: int) -> bytes | None:
        try:
            store.put_bytes(b"%d" % number, "race", if_absent=True)
        except ConflictError:
            return None
        return b"%d" % number

    with ThreadPoolExecutor(16) as pool:
        winners = [data for data in pool.map(write, range(16)) if data is not None]
    assert winners == [store.get_bytes("race")]


def test_a_reader_beside_a_writer_sees_one_version_or_the_other(store: ObjectStore):
    versions = {bytes([letter]) * 200_000 for letter in b"abc"}
    store.put_bytes(b"a" * 200_000, "busy")
    stop = Event()

    def write() -> None:
        while not stop.is_set():
            for data in versions:
                store.put_bytes(data, "busy")

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            seen = [store.get_bytes("busy") for _ in range(60)]
        finally:
            stop.set()
        writing.result()
    assert set(seen) <= versions


def test_deleting_is_idempotent_and_forgets_the_hash(store: ObjectStore, deliver):
    store.put_bytes(b"x", "a/key")
    store.delete("a/key")
    store.delete("a/key")
    assert list(store.list()) == []
    deliver("a/key", b"another")
    assert store.get_bytes("a/key") == b"another"


@pytest.mark.parametrize("key", ["../out", "/etc/passwd", "a//b", "a\\b", "a\nb", ".retroln/sha256/x", ""])
def test_unsafe_keys_are_refused_everywhere(store: ObjectStore, tmp_path: Path, key: str):
    (tmp_path / "in").write_bytes(b"x")
    for call in (
        lambda: store.stat(key),
        lambda: store.get_bytes(key),
        lambda: store.get_file(key, tmp_path / "out"),
        lambda: store.put_bytes(b"x", key),
        lambda: store.put_file(tmp_path / "in", key),
        lambda: store.delete(key),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.reason == "unsafe_key"
    assert not (tmp_path / "out").exists()


def test_objects_of_others_are_taken_as_they_are(store: ObjectStore, deliver, tmp_path: Path):
    deliver("p/c/ct.nii.gz", b"delivered")
    assert store.stat("p/c/ct.nii.gz").sha256 is None
    assert store.get_file("p/c/ct.nii.gz", tmp_path / "out") == sha256(b"delivered")


def test_changed_bytes_are_not_handed_out(store: ObjectStore, deliver, tmp_path: Path):
    store.put_bytes(b"original", "key")
    deliver("key", b"tampered", {"sha256": sha256(b"original")})
    with pytest.raises(IntegrityError, match=sha256(b"original")):
        store.get_bytes("key")
    with pytest.raises(IntegrityError, match=sha256(b"tampered")):
        store.get_file("key", tmp_path / "out" / "file")
    assert list((tmp_path / "out").iterdir()) == []
    store.put_bytes(b"mended", "key")
    assert store.get_bytes("key") == b"mended"


def test_a_read_only_store_reads_and_never_writes(place: tuple[str, Settings], store: ObjectStore, deliver):
    store.put_bytes(b"x", "key")
    source = open_store(*place, read_only=True)
    with pytest.raises(ConflictError, match="read-only"):
        source.put_bytes(b"y", "key")
    with pytest.raises(ConflictError, match="read-only"):
        source.delete("key")
    deliver("key", b"delivered again")
    assert source.get_bytes("key") == b"delivered again"


def test_a_large_file_streams(store: ObjectStore, tmp_path: Path):
    block = secrets.token_bytes(MIB)
    with (tmp_path / "big").open("wb") as stream:
        for number in range(70):
            stream.write(block[number:] + block[:number])
    tracemalloc.start()
    try:
        put = store.put_file(tmp_path / "big", "big")
        got = store.get_file("big", tmp_path / "back")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    assert (put.size_bytes, put.sha256) == (70 * MIB, got)
    assert store.stat("big") == put
    assert peak < 40 * MIB


def test_a_put_whose_source_breaks_leaves_nothing(store: ObjectStore, tmp_path: Path):
    with pytest.raises(RefusedError, match="Input/output error"):
        store.put_file(Path("/proc/self/mem"), "key")
    assert list(store.list()) == []
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".partial")]


def _read_in_child(store: ObjectStore, key: str) -> None:
    os._exit(0 if store.get_bytes(key) == b"shared" else 1)


def test_a_forked_child_reads_on_connections_of_its_own(store: ObjectStore):
    store.put_bytes(b"shared", "key")
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(store, "key"))
    child.start()
    assert store.get_bytes("key") == b"shared"
    child.join(30)
    assert child.exitcode == 0


class TestFolder:
    """What only a folder can do wrong."""

    def test_a_listing_is_in_the_order_of_keys_not_of_folders(self, tmp_path: Path):
        store = open_store(f"file://{tmp_path}/store", Settings())
        keys = ["Z", "a.txt", "a/b.x", "a/b/c", "a0", "ü/1"]
        for key in reversed(keys):
            store.put_bytes(b"x", key)
        assert [info.key for info in store.list()] == keys

    def test_a_relative_address_starts_at_the_working_directory(self, tmp_path: Path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        store = open_store("file://var/my%20store", Settings())
        store.put_bytes(b"x", "key")
        monkeypatch.chdir("/")
        assert store.get_bytes("key") == b"x"
        assert (tmp_path / "var" / "my store" / "key").read_bytes() == b"x"
        assert open_store((tmp_path / "var" / "my store").as_uri(), Settings()).get_bytes("key") == b"x"

    def test_nothing_is_created_before_the_first_put(self, tmp_path: Path):
        assert list(open_store(f"file://{tmp_path}/store", Settings()).list()) == []
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_source_is_an_error_not_an_empty_store(self, tmp_path: Path):
        source = open_store(f"file://{tmp_path}/absent", Settings(), read_only=True)
        with pytest.raises(NotFoundError, match="no such folder"):
            list(source.list())

    def test_links_that_leave_the_store_are_shown_but_not_followed(self, tmp_path: Path):
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "file").write_bytes(b"secret")
        store = open_store(f"file://{tmp_path}/store", Settings())
        store.put_bytes(b"x", "inside")
        (tmp_path / "store" / "file").symlink_to(tmp_path / "secret" / "file")
        (tmp_path / "store" / "folder").symlink_to(tmp_path / "secret")
        (tmp_path / "store" / "alias").symlink_to("inside")
        (tmp_path / "store" / "loop").symlink_to(".")
        assert [info.key for info in store.list()] == ["alias", "file", "folder", "inside"]
        assert store.get_bytes("alias") == b"x"
        for key in ("file", "folder/file"):
            with pytest.raises(InputError, match="outside its store"):
                store.get_bytes(key)
            with pytest.raises(InputError, match="outside its store"):
                store.put_bytes(b"y", key)
        assert (tmp_path / "secret" / "file").read_bytes() == b"secret"

    def test_a_folder_is_not_overwritten_by_an_object(self, tmp_path: Path):
        store = open_store(f"file://{tmp_path}/store", Settings())
        store.put_bytes(b"x", "a/b")
        with pytest.raises(ConflictError):
            store.put_bytes(b"y", "a")
        with pytest.raises(ConflictError):
            store.put_bytes(b"y", "a/b/c")

    @pytest.mark.parametrize("uri", ["var/store", "file://", "ftp://host/x", "s3://", ""])
    def test_other_addresses_are_refused(self, uri: str):
        with pytest.raises(SettingsError, match="file://folder"):
            open_store(uri, Settings())


class TestS3:
    """What only a server can do wrong."""

    def test_wrong_keys_are_a_matter_of_settings(self, s3_server: S3Server):
        bucket = s3_server.make_bucket(f"b-{secrets.token_hex(6)}")
        settings = Settings(s3_endpoint=s3_server.endpoint, s3_access_key="nobody", s3_secret_key="wrong")
        with pytest.raises(SettingsError, match="RETROLN_S3_ACCESS_KEY") as caught:
            open_store(bucket, settings).get_bytes("key")
        assert "wrong" not in str(caught.value)

    def test_a_missing_bucket_is_named(self, s3_settings: Settings):
        store = open_store("s3://no-such-bucket-here", s3_settings)
        with pytest.raises(NotFoundError, match="no such bucket"):
            list(store.list())
        with pytest.raises(NotFoundError, match="no such bucket"):
            store.put_bytes(b"x", "key")

    def test_a_server_that_is_away_is_unavailable(self):
        settings = Settings(s3_endpoint="http://127.0.0.1:9", s3_access_key="a", s3_secret_key="b")
        with pytest.raises(UnavailableError, match="RETROLN_S3_ENDPOINT"):
            open_store("s3://bucket", settings).get_bytes("key")

    def test_what_was_put_is_compared_by_one_head_and_no_read(
        self, s3_server: S3Server, s3_settings: Settings, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(s3_upload, "_ONE_PUT_BYTES", MIB)
        monkeypatch.setattr(s3_upload, "_PART_BYTES", 5 * MIB)  # the least that S3 takes
        store = open_store(s3_server.make_bucket(f"b-{secrets.token_hex(6)}"), s3_settings)
        monkeypatch.setattr(S3Store, "_read", None)
        for data in (b"", b"voxels", secrets.token_bytes(6 * MIB)):
            put = store.put_bytes(data, "key")
            assert (put.size_bytes, put.sha256) == (len(data), sha256(data))

    def test_bytes_damaged_on_their_way_are_refused_before_anybody_sees_them(
        self, s3_server: S3Server, s3_settings: Settings, monkeypatch: pytest.MonkeyPatch
    ):
        store = open_store(s3_server.make_bucket(f"b-{secrets.token_hex(6)}"), s3_settings)
        store.put_bytes(b"before", "key")
        monkeypatch.setattr(s3_upload, "_in_base64", lambda _: b64encode(bytes(16)).decode())
        with pytest.raises(UnavailableError, match="received other bytes than were sent"):
            store.put_bytes(b"voxels", "key")
        assert store.get_bytes("key") == b"before"

    def test_no_part_of_a_refused_upload_stays(self, s3_server: S3Server, s3_settings: Settings, tmp_path):
        bucket = s3_server.make_bucket(f"b-{secrets.token_hex(6)}")
        store = open_store(bucket, s3_settings)
        (tmp_path / "big").write_bytes(bytes(65 * MIB))
        store.put_bytes(b"x", "key")
        with pytest.raises(ConflictError):
            store.put_file(tmp_path / "big", "key", if_absent=True)
        with closing(s3_server.client()) as client:
            assert not client.list_multipart_uploads(Bucket=bucket[5:]).get("Uploads")
