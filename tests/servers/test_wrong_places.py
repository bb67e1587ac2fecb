"""Addresses of servers that are there and are not what they should be: named at once, never an outage."""

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.servers import S3Server
from retroln.errors import SettingsError
from retroln.settings import Settings
from retroln.storage.base import ObjectStore
from retroln.storage.open import open_store
from retroln.tracking.connection import Connection, without_delay
from retroln.tracking.registry import MlflowRegistry


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 tries five times; between them it need not wait here."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


class _Server(ThreadingHTTPServer):
    """Keeps what is put, byte for byte and with nothing of S3's framing taken off, as older servers do."""

    bodies: dict[str, bytes]
    page = b""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        if "Content-Length" not in self.headers:
            self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
            self.close_connection = True
            return
        self.server.bodies[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200, self.server.page)

    def do_HEAD(self) -> None:
        self._answer(200)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), ("ETag", '"e"')):
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
    made.bodies = {}
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
        store = _store(f"https://localhost:{server.server_port}")
        store.put_bytes(b"label map", "a/b")
        (tmp_path / "file").write_bytes(b"voxels")
        store.put_file(tmp_path / "file", "a/c")
        assert server.bodies == {"/bucket/a/b": b"label map", "/bucket/a/c": b"voxels"}


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
