"""Set up buckets of the S3 server as its administrator: what the product never does."""

from __future__ import annotations

import hashlib
import hmac
import http.client
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlsplit

from tests.support.object_servers import ADMIN_ACCESS_KEY, ADMIN_SECRET_KEY


def administer(
    endpoint: str,
    path: str,
    query: str = "",
    content: bytes = b"",
    *,
    method: str = "PUT",
    also: Mapping[str, str] | None = None,
) -> str:
    """Send ``path?query``, signed, with headers ``also``; the answer. Raises on refusal."""
    host = urlsplit(endpoint).netloc
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    digest = hashlib.sha256(content).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": now, **(also or {})}
    names = ";".join(sorted(headers))
    lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
    request = "\n".join([method, path, query, *lines, "", names, digest])
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    said = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = b"AWS4" + ADMIN_SECRET_KEY.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, said.encode(), "sha256").hex()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={ADMIN_ACCESS_KEY}/{scope}, SignedHeaders={names}, "
        f"Signature={signature}"
    )
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        connection.request(method, f"{path}?{query}", content, headers)
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status >= 300:
        raise RuntimeError(f"{method} {path}?{query}: {response.status} {answer!r}")
    return answer.decode()
