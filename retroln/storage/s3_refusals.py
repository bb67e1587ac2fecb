"""What an S3 server's or boto3's error means: away for a while, or wrong until a person mends it."""

from __future__ import annotations

from typing import Any

from retroln.errors import Meaning, NotFoundError, RefusedError, SettingsError, UnavailableError

AWAY = Meaning(
    UnavailableError,
    "does not answer",
    "check that the server at RETROLN_S3_ENDPOINT runs, then try again",
)
DAMAGED = Meaning(
    UnavailableError,
    "received other bytes than were sent",
    "try again; if it stays so, look at what lies between: a proxy, a gateway, the network",
)
KEYS = Meaning(
    SettingsError,
    "refused the keys",
    "check RETROLN_S3_ACCESS_KEY, RETROLN_S3_SECRET_KEY and the bucket's policy",
)
NO_KEYS = Meaning(SettingsError, "was given no keys", "set RETROLN_S3_ACCESS_KEY and RETROLN_S3_SECRET_KEY")
CLOCK = Meaning(SettingsError, "refused the time of the request", "let both machines keep time by NTP")
NO_BUCKET = Meaning(NotFoundError, "has no such bucket", "create it, or mend the address")
PLACE = Meaning(
    SettingsError,
    "cannot reach the bucket in this way",
    "check the address, RETROLN_S3_ENDPOINT and RETROLN_S3_REGION",
)
NOT_S3 = Meaning(
    SettingsError,
    "is no S3 server",
    "point RETROLN_S3_ENDPOINT to the S3 API, not to pages or another service",
)
TLS = Meaning(
    SettingsError,
    "cannot be reached by TLS",
    "mend its certificate, name its authority in AWS_CA_BUNDLE, or check http:// and https:// in"
    " RETROLN_S3_ENDPOINT",
)
FULL = Meaning(RefusedError, "has no room left", "free space on the server, or raise the bucket's quota")
REFUSED = Meaning(
    RefusedError,
    "cannot do this",
    "look at the server's log; it must offer S3 with signature version 4 and conditional puts",
)

_BY_CODE = {
    "AccountProblem": KEYS,
    "AllAccessDisabled": KEYS,
    "AuthorizationHeaderMalformed": PLACE,  # the bucket is in another region
    "BadDigest": DAMAGED,
    "BadRequest": REFUSED,
    "ExpiredToken": KEYS,
    "IllegalLocationConstraintException": PLACE,
    "IncompleteBody": AWAY,
    "InsufficientStorage": FULL,
    "InvalidAccessKeyId": KEYS,
    "InvalidBucketName": PLACE,
    "InvalidToken": KEYS,
    "NoSuchBucket": NO_BUCKET,
    "NoSuchUpload": AWAY,  # the server forgot an upload in parts; the next try begins another
    "NotImplemented": REFUSED,
    "OperationAborted": AWAY,
    "PermanentRedirect": PLACE,
    "QuotaExceeded": FULL,
    "RequestTimeTooSkewed": CLOCK,
    "RequestTimeout": AWAY,
    "SignatureDoesNotMatch": KEYS,
    "Throttling": AWAY,
    "ThrottlingException": AWAY,
    "XAmzContentChecksumMismatch": DAMAGED,
    "XAmzContentSHA256Mismatch": DAMAGED,
    "XMinioAdminBucketQuotaExceeded": FULL,
    "XMinioStorageFull": FULL,
}
_BY_STATUS = {301: PLACE, 307: PLACE, 401: KEYS, 403: KEYS, 408: AWAY, 429: AWAY, 501: REFUSED, 507: FULL}

_WRONG_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "UNKNOWN_CA", "HANDSHAKE_FAILURE")
"""As OpenSSL names them. A connection that broke during the handshake is an `SSLError`, too."""


def of_reply(error: Any) -> Meaning:
    """What a `ClientError` means. A reply to HEAD has no body, so its status is the code."""
    reply = error.response
    code = str(reply.get("Error", {}).get("Code", ""))
    status = int(code) if code.isdigit() else reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if meaning := _BY_CODE.get(code) or _BY_STATUS.get(status):
        return meaning
    return AWAY if status >= 500 else REFUSED


def of_failure(error: Exception) -> Meaning:
    """What an error of boto3 itself means, where no reply came or it could not be read."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return NO_KEYS
    if isinstance(error, boto.SSLError):
        return TLS if any(words in str(error).upper().replace(" ", "_") for words in _WRONG_TLS) else AWAY
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError):
        return AWAY
    return NOT_S3 if isinstance(error, ResponseParserError) else PLACE
