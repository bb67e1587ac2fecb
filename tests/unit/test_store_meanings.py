"""What stores, disks and MLflow say of themselves: which of it is worth another try."""

import errno
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import OperationalError

from retroln.errors import (
    ConflictError,
    NotFoundError,
    RefusedError,
    SettingsError,
    UnavailableError,
    UserError,
)
from retroln.files import disk_refusal, naming_disk_refusals
from retroln.storage import s3_refusals
from retroln.storage.local import LocalStore
from retroln.tracking.refusals import refusal

URI = "http://mlflow.example.org"


class TestS3:
    @pytest.mark.parametrize(
        ("code", "status", "meaning"),
        [
            ("AccessDenied", 403, "KEYS"),
            ("InvalidAccessKeyId", 403, "KEYS"),
            ("SignatureDoesNotMatch", 403, "KEYS"),
            ("ExpiredToken", 400, "KEYS"),
            ("403", 403, "KEYS"),  # HEAD
            ("RequestTimeTooSkewed", 403, "CLOCK"),
            ("NoSuchBucket", 404, "NO_BUCKET"),
            ("PermanentRedirect", 301, "PLACE"),
            ("301", 301, "PLACE"),
            ("AuthorizationHeaderMalformed", 400, "PLACE"),
            ("InvalidBucketName", 400, "PLACE"),
            ("XMinioStorageFull", 507, "FULL"),
            ("InsufficientStorage", 507, "FULL"),
            ("507", 507, "FULL"),
            ("QuotaExceeded", 403, "FULL"),
            ("NotImplemented", 501, "REFUSED"),
            ("InvalidArgument", 400, "REFUSED"),
            ("EntityTooLarge", 400, "REFUSED"),
            ("MethodNotAllowed", 405, "REFUSED"),
            ("InternalError", 500, "AWAY"),
            ("ServiceUnavailable", 503, "AWAY"),
            ("SlowDown", 503, "AWAY"),
            ("502", 502, "AWAY"),
            ("TooManyRequests", 429, "AWAY"),
            ("RequestTimeout", 400, "AWAY"),
            ("BadDigest", 400, "DAMAGED"),
            ("XAmzContentSHA256Mismatch", 400, "DAMAGED"),
            ("NoSuchUpload", 404, "AWAY"),
        ],
    )
    def test_a_reply(self, code: str, status: int, meaning: str) -> None:
        reply = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        assert s3_refusals.of_reply(boto.ClientError(reply, "PutObject")) is getattr(s3_refusals, meaning)

    @pytest.mark.parametrize(
        ("error", "meaning"),
        [
            (boto.EndpointConnectionError(endpoint_url="u"), "AWAY"),
            (boto.ConnectTimeoutError(endpoint_url="u"), "AWAY"),
            (boto.ReadTimeoutError(endpoint_url="u"), "AWAY"),
            (boto.ConnectionClosedError(endpoint_url="u"), "AWAY"),
            (boto.ProxyConnectionError(proxy_url="u"), "AWAY"),
            (boto.HTTPClientError(error="broke"), "AWAY"),
            (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), "AWAY"),
            (boto.SSLError(endpoint_url="u", error="UNEXPECTED_EOF_WHILE_READING"), "AWAY"),
            (boto.SSLError(endpoint_url="u", error="[SSL: CERTIFICATE_VERIFY_FAILED]"), "TLS"),
            (boto.SSLError(endpoint_url="u", error="[SSL: WRONG_VERSION_NUMBER]"), "TLS"),
            (boto.NoCredentialsError(), "NO_KEYS"),
            (boto.PartialCredentialsError(provider="env", cred_var="key"), "NO_KEYS"),
            (boto.ParamValidationError(report="Invalid bucket name"), "PLACE"),
            (ResponseParserError("invalid XML"), "NOT_S3"),
        ],
    )
    def test_no_reply(self, error: Exception, meaning: str) -> None:
        assert s3_refusals.of_failure(error) is getattr(s3_refusals, meaning)

    def test_two_meanings_are_worth_another_try(self) -> None:
        kinds = {name: getattr(value, "kind", None) for name, value in vars(s3_refusals).items()}
        assert [name for name, kind in kinds.items() if kind is UnavailableError] == ["AWAY", "DAMAGED"]


class TestDisk:
    @pytest.mark.parametrize(
        ("number", "kind", "says"),
        [
            (errno.ENOSPC, RefusedError, "no room left"),
            (errno.EDQUOT, RefusedError, "no room left"),
            (errno.EFBIG, RefusedError, "no room left"),
            (errno.EROFS, RefusedError, "read-only"),
            (errno.EACCES, RefusedError, "refuses this user"),
            (errno.EPERM, RefusedError, "refuses this user"),
            (errno.EIO, RefusedError, "fault of its own"),
            (errno.ESTALE, UnavailableError, "away"),
            (errno.ETIMEDOUT, UnavailableError, "away"),
        ],
    )
    def test_an_error_of_the_system(self, number: int, kind: type[UserError], says: str) -> None:
        with (
            pytest.raises(kind, match=f"^/a/b: the disk .*{says}.*; fix: ") as caught,
            naming_disk_refusals(),
        ):
            raise OSError(number, "said so", "/a/b")
        assert type(caught.value) is kind

    def test_other_errors_stay_what_they_are(self) -> None:
        assert disk_refusal(FileNotFoundError(errno.ENOENT, "no such file", "/a")) is None
        assert disk_refusal(OSError("no number")) is None
        with pytest.raises(FileNotFoundError), naming_disk_refusals():
            raise FileNotFoundError(errno.ENOENT, "no such file", "/a")

    @pytest.fixture
    def little_room(self) -> Iterator[None]:
        """No file may grow beyond 1000 bytes, as on a disk that is full."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def test_a_store_without_room_says_so_and_keeps_what_it_holds(
        self, tmp_path: Path, little_room: None
    ) -> None:
        store = LocalStore(tmp_path)
        store.put_bytes(b"small", "key")
        with pytest.raises(RefusedError, match=r"no room left.*free space"):
            store.put_bytes(bytes(5000), "key")
        assert store.get_bytes("key") == b"small"
        assert [info.key for info in store.list()] == ["key"]


class TestMlflow:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("INTERNAL_ERROR", UnavailableError),
            ("TEMPORARILY_UNAVAILABLE", UnavailableError),
            ("DEADLINE_EXCEEDED", UnavailableError),
            ("REQUEST_LIMIT_EXCEEDED", UnavailableError),
            ("BAD_REQUEST", RefusedError),
            ("INVALID_PARAMETER_VALUE", RefusedError),
            ("INVALID_STATE", RefusedError),
            ("NOT_IMPLEMENTED", RefusedError),
            ("UNAUTHENTICATED", SettingsError),
            ("CUSTOMER_UNAUTHORIZED", SettingsError),
            ("PERMISSION_DENIED", SettingsError),
            ("ENDPOINT_NOT_FOUND", SettingsError),
            ("RESOURCE_DOES_NOT_EXIST", NotFoundError),
            ("RESOURCE_ALREADY_EXISTS", ConflictError),
            ("RESOURCE_CONFLICT", ConflictError),
        ],
    )
    def test_a_reply(self, code: str, kind: type[UserError]) -> None:
        named = refusal(RestException({"error_code": code, "message": "said so"}), URI)
        assert type(named) is kind
        assert code in str(named) and "said so" in str(named) and named.fix

    @pytest.mark.parametrize(
        ("words", "kind"),
        [
            ("API request failed with exception HTTPConnectionPool: Connection refused", UnavailableError),
            ("API request failed with timeout exception", UnavailableError),
            ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", SettingsError),
            ("SSLError(SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number", SettingsError),
            ("the response body was not in a valid JSON format", SettingsError),
            ("No connection adapters were found for 'mlflow'", SettingsError),
            ("INTERNAL_ERROR: Response: {'detail': 'Not Found'}", SettingsError),
            (
                "API request to endpoint /api failed with error code 413 != 200. Response body: ''",
                RefusedError,
            ),
            (
                "API request to endpoint /api failed with error code 405 != 200. Response body: ''",
                RefusedError,
            ),
            (
                "API request to endpoint /api failed with error code 502 != 200. Response body: ''",
                UnavailableError,
            ),
            ("##### File bundle ##### 404 Client Error: Not Found for url: http://m/x", NotFoundError),
            ("File a 404 Client Error: Not Found; File b 503 Server Error: Unavailable", UnavailableError),
            ("The run 0 must be in the 'active' state. Current state is deleted.", RefusedError),
        ],
    )
    def test_what_its_client_says(self, words: str, kind: type[UserError]) -> None:
        assert type(refusal(MlflowException(words), URI)) is kind

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (None, UnavailableError),
            (500, UnavailableError),
            (503, UnavailableError),
            (429, UnavailableError),
            (400, RefusedError),
            (501, RefusedError),
            (507, RefusedError),
            (401, SettingsError),
            (403, SettingsError),
            (404, NotFoundError),
            (409, ConflictError),
        ],
    )
    def test_artifacts(self, status: int | None, kind: type[UserError]) -> None:
        reply = SimpleNamespace(status_code=status, request=None) if status else None
        assert type(refusal(requests.HTTPError("said so", response=reply), URI)) is kind

    def test_an_embedded_one_whose_disk_is_full(self) -> None:
        import sqlite3

        cause = sqlite3.OperationalError("database or disk is full")
        cause.sqlite_errorname = "SQLITE_FULL"
        error = MlflowException("database or disk is full")
        error.__cause__ = OperationalError("INSERT", {}, cause)
        named = refusal(error, "sqlite:///m.db")
        assert type(named) is RefusedError and "RETROLN_MLFLOW_URI" in str(named.fix)

    def test_other_errors_are_bugs(self) -> None:
        assert refusal(ValueError("x"), URI) is None
