"""Addresses of servers that are there and are not what they should be: named at once, never an outage."""

import hashlib
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.servers import S3Server
from retroln.errors import IntegrityError, SettingsError
from retroln.settings import Settings
from retroln.storage import s3_upload
from retroln.storage.base import ObjectStore
from retroln.storage.open import open_store
from retroln.tracking.connection import Connection, without_delay
from retroln.tracking.registry import MlflowRegistry


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 tries five times; between them it need not wait here."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


class _Server(ThreadingHTTPServer):
    """Keeps what is put, byte for byte and with nothing of S3's framing taken off, as older servers do.

    Attributes:
        objects: body and headers by path; what `spoil` makes of a body is kept, whatever it was sent with.
        etag: what it says of a body; by default the MD5, as S3 does of what is not encrypted by KMS.
        requests: methods, in order.
        page: what it answers to GET where there is no object.
    """

    objects: dict[str, tuple[bytes, dict[str, str]]]
    parts: list[bytes]
    requests: list[str]
    page = b""

    def spoil(self, body: bytes) -> bytes:
        return body

    def etag(self, body: bytes) -> str:
        return hashlib.md5(body).hexdigest()

    def bodies(self) -> dict[str, bytes]:
        return {path: body for path, (body, _) in self.objects.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        """An upload in parts begins and ends."""
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        path, _, query = self.path.partition("?")
        if query == "uploads":
            self.server.parts, self.server.objects[path] = [], (b"", self._metadata())
            self._answer(
                200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            )
            return
        parts = self.server.parts
        digests = b"".join(hashlib.md5(part).digest() for part in parts)
        whole = {"ETag": f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"}
        self.server.objects[path] = (b"".join(parts), self.server.objects[path][1] | whole)
        self._answer(200, b"<CompleteMultipartUploadResult/>")

    def do_PUT(self) -> None:
        if "Content-Length" not in self.headers:
            self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
            self.close_connection = True
            return
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        body, (path, _, query) = self.server.spoil(sent), self.path.partition("?")
        if self.headers["Content-MD5"] != b64encode(hashlib.md5(sent).digest()).decode():
            self._answer(400, b"<Error><Code>BadDigest</Code></Error>")
        elif self.headers["X-Amz-Content-SHA256"] != hashlib.sha256(sent).hexdigest():
            self._answer(400, b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>")
        elif query:
            self.server.parts.append(body)
            self._answer(200, ETag=self.server.etag(body))
        else:
            self.server.objects[path] = (body, self._metadata() | {"ETag": self.server.etag(body)})
            self._answer(200)

    def do_GET(self) -> None:
        if self.server.page:
            self._answer(200, self.server.page)
        elif kept := self.server.objects.get(self.path.partition("?")[0]):
            self._answer(200, kept[0], **kept[1])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self._answer(204)

    def _metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")}

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.server.requests.append(self.command)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _certificate(path: Path) -> None:
    """A key and a certificate for localhost that no authority signed."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]),
    )
    now = datetime.now(UTC).replace(tzinfo=None)  # which is what the builder compares with
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Server]:
    """On plain HTTP, or with `indirect` "tls" behind a certificate that nobody knows."""
    made = _Server(("localhost", 0), _Handler)
    made.objects, made.parts, made.requests = {}, [], []
    if getattr(request, "param", "") == "tls":
        _certificate(tmp_path / "server.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def _store(endpoint: str, bucket: str = "bucket") -> ObjectStore:
    settings = Settings(s3_endpoint=endpoint, s3_access_key="a", s3_secret_key="b" * 8)
    return open_store(f"s3://{bucket}", settings)


@pytest.mark.parametrize("server", ["tls"], indirect=True)
class TestTls:
    def test_a_store_with_an_unknown_certificate(self, server: _Server) -> None:
        with pytest.raises(SettingsError, match=r"by TLS.*CERTIFICATE_VERIFY_FAILED.*AWS_CA_BUNDLE"):
            _store(f"https://localhost:{server.server_port}").get_bytes("key")

    def test_an_mlflow_with_an_unknown_certificate(self, server: _Server) -> None:
        settings = Settings(mlflow_uri=f"https://localhost:{server.server_port}")
        with without_delay(), pytest.raises(SettingsError, match=r"by TLS.*certificate"):
            MlflowRegistry.of(settings).aliases()

    def test_a_server_that_knows_no_trailing_checksums_keeps_the_bytes(
        self, server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "server.pem"))
        monkeypatch.setattr(s3_upload, "_ONE_PUT_BYTES", 10)
        monkeypatch.setattr(s3_upload, "_PART_BYTES", 5)
        store = _store(f"https://localhost:{server.server_port}")
        store.put_bytes(b"label map", "a/b")
        (tmp_path / "file").write_bytes(b"voxels")
        store.put_file(tmp_path / "file", "a/c")
        store.put_bytes(b"twelve bytes", "in/parts")
        sent = {"/bucket/a/b": b"label map", "/bucket/a/c": b"voxels", "/bucket/in/parts": b"twelve bytes"}
        assert server.bodies() == sent
        assert "GET" not in server.requests


class TestAServerThatKeepsOtherBytes:
    """A put is only well when what was sent is there: size and hash are compared after each."""

    @pytest.fixture
    def store(self, server: _Server) -> ObjectStore:
        return _store(f"http://localhost:{server.server_port}")

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda body: b"%x\r\n%s\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n" % (len(body), body),
            lambda body: body[:-1],
            lambda body: b"V" + body[1:],
        ],
        ids=["framed", "shorter", "altered"],
    )
    @pytest.mark.parametrize("etag", [_Server.etag, lambda *_: "none"], ids=["md5", "kms"])
    def test_is_found_out_and_nothing_stays(
        self, server: _Server, store: ObjectStore, spoil: Callable[[bytes], bytes], etag: Any, tmp_path: Path
    ) -> None:
        server.spoil, server.etag = spoil, partial(etag, server)  # type: ignore[method-assign]
        (tmp_path / "file").write_bytes(b"voxels")
        for put in (partial(store.put_bytes, b"voxels"), partial(store.put_file, tmp_path / "file")):
            with pytest.raises(
                IntegrityError, match=r"s3://bucket/a/b: .*kept other bytes.*expected: 6 bytes"
            ):
                put("a/b", if_absent=True)
            assert server.objects == {}

    def test_is_found_out_in_parts(
        self, server: _Server, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3_upload, "_ONE_PUT_BYTES", 10)
        monkeypatch.setattr(s3_upload, "_PART_BYTES", 5)
        server.spoil = lambda body: b"V" + body[1:]  # type: ignore[method-assign]
        with pytest.raises(IntegrityError, match="kept other bytes"):
            store.put_bytes(b"twelve bytes", "a/b")
        assert server.objects == {}

    def test_an_etag_that_says_nothing_is_made_up_for_by_reading(
        self, server: _Server, store: ObjectStore
    ) -> None:
        server.etag = lambda _: "by-kms"  # type: ignore[method-assign]
        assert store.put_bytes(b"voxels", "a/b").fingerprint == "by-kms"
        assert server.requests == ["PUT", "HEAD", "GET"]

    def test_a_later_writer_is_left_alone(self, server: _Server, store: ObjectStore) -> None:
        class Later(dict[str, tuple[bytes, dict[str, str]]]):
            def __setitem__(self, path: str, _: Any) -> None:
                headers = {"x-amz-meta-sha256": hashlib.sha256(b"later").hexdigest(), "ETag": "of-later"}
                super().__setitem__(path, (b"later", headers))

        server.objects = Later()
        assert store.put_bytes(b"voxels", "a/b").fingerprint == "of-later"
        assert store.get_bytes("a/b") == b"later"


def test_https_where_the_store_speaks_http(s3_server: S3Server) -> None:
    with pytest.raises(SettingsError, match=r"by TLS.*http://"):
        _store(s3_server.endpoint.replace("http:", "https:")).get_bytes("key")


def test_pages_where_mlflow_should_be(server: _Server) -> None:
    server.page = b"<html><body>pages</body></html>"
    connection = Connection.of(Settings(mlflow_uri=f"http://localhost:{server.server_port}"))
    with without_delay(), pytest.raises(SettingsError, match=r"something else does.*RETROLN_MLFLOW_URI"):
        _ = connection.experiment_id


@pytest.mark.parametrize("endpoint", ["localhost:8333", "http//host"])
def test_an_endpoint_that_is_no_address(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="RETROLN_S3_ENDPOINT"):
        _store(endpoint)


def test_a_bucket_whose_name_is_none(s3_server: S3Server) -> None:
    with pytest.raises(SettingsError, match="cannot reach the bucket"):
        _store(s3_server.endpoint, "a bucket!").get_bytes("key")
