"""From settings to a client of S3, Google Cloud Storage or Azure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from pgrecall.errors import SettingsError
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.entity_tags import EntityTags
from pgrecall.store.object_failures import Failure
from pgrecall.store.object_store import ObjectStore

if TYPE_CHECKING:
    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        RetryConfig,
        S3Config,
        S3Credential,
    )
    from obstore.store import ObjectStore as Client

_DEFAULT_REGION = "us-east-1"


def open_object_store(settings: RepositorySettings, secrets: Mapping[str, str]) -> ObjectStore:
    """A store of kind s3, gcs or azure; nothing is sent yet.

    ``secrets``: resolved ``access_key``, ``secret_key``, ``session_token``,
    ``account_key``, ``credentials_file`` (its content), each possibly empty.
    Without any, obstore looks where the services' own tools look: environment,
    web identity, instance metadata. Raises SettingsError.
    """
    if not settings.bucket:
        raise _bad(settings, f"a store of kind {settings.store} needs a bucket")
    _check_endpoint(settings)
    client: Client
    try:
        if settings.store == "s3":
            client = _s3(settings, secrets)
        elif settings.store == "gcs":
            client = _gcs(settings, secrets)
        else:
            client = _azure(settings, secrets)
    except (BaseError, ValueError, OSError) as error:
        raise _bad(settings, Failure(error, secrets.values()).text) from error
    scheme = {"s3": "s3", "gcs": "gs", "azure": "az"}[settings.store]
    name = "/".join([f"{scheme}://{settings.bucket}", *_prefix_parts(settings)])
    return ObjectStore(
        client,
        name,
        EntityTags(may_be_digests=not settings.sse.startswith("aws:kms")),
        secrets=tuple(secrets.values()),
        pack_bytes=settings.pack_bytes,
        storage_class=settings.storage_class if settings.store == "s3" else "",
    )


def _s3(settings: RepositorySettings, secrets: Mapping[str, str]) -> S3Store:
    config: S3Config = {
        # Put-if-absent by If-None-Match; stated, so that no environment variable changes it.
        "conditional_put": "etag",
        # A single delete is understood by every service, the bulk request is not.
        "disable_bulk_delete": True,
        "virtual_hosted_style_request": not settings.path_style,
        # Under TLS the payload is protected already; its sha256 costs 0.5 s per GB.
        "unsigned_payload": not settings.endpoint.startswith("http:"),
    }
    if settings.region or settings.endpoint:
        config["region"] = settings.region or _DEFAULT_REGION
    if settings.endpoint:
        config["endpoint"] = _s3_endpoint(settings)
    if settings.sse:
        config["server_side_encryption"] = settings.sse
    if settings.sse_kms_key:
        config["sse_kms_key_id"] = settings.sse_kms_key
    if not secrets["access_key"] and not secrets["secret_key"]:
        return S3Store(
            settings.bucket,
            prefix=_prefix(settings),
            config=config,
            client_options=_client_options(settings),
            retry_config=_no_retries(),
        )
    if not (secrets["access_key"] and secrets["secret_key"]):
        raise _bad(settings, "access_key and secret_key go together")
    credential: S3Credential = {
        "access_key_id": secrets["access_key"],
        "secret_access_key": secrets["secret_key"],
        "token": secrets["session_token"] or None,
        "expires_at": None,
    }
    config["skip_signature"] = False
    return S3Store(
        settings.bucket,
        prefix=_prefix(settings),
        config=config,
        client_options=_client_options(settings),
        retry_config=_no_retries(),
        # Not through config: there, a session token of the environment would join in.
        credential_provider=lambda: credential,
    )


def _gcs(settings: RepositorySettings, secrets: Mapping[str, str]) -> GCSStore:
    config: GCSConfig = {}
    if secrets["credentials_file"]:
        config["service_account_key"] = secrets["credentials_file"]
    if settings.endpoint:
        config["base_url"] = settings.endpoint
    return GCSStore(
        settings.bucket,
        prefix=_prefix(settings),
        config=config,
        client_options=_client_options(settings),
        retry_config=_no_retries(),
    )


def _azure(settings: RepositorySettings, secrets: Mapping[str, str]) -> AzureStore:
    if not settings.account:
        raise _bad(settings, "a store of kind azure needs an account")
    config: AzureConfig = {"account_name": settings.account}
    if secrets["account_key"]:
        config["account_key"] = secrets["account_key"]
    if settings.endpoint:
        config["endpoint"] = settings.endpoint
    return AzureStore(
        settings.bucket,
        prefix=_prefix(settings),
        config=config,
        client_options=_client_options(settings),
        retry_config=_no_retries(),
    )


def _client_options(settings: RepositorySettings) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": settings.allow_http,
        # From the first byte of the request to the last of the answer's body.
        "timeout": timedelta(seconds=settings.timeout_seconds),
        "connect_timeout": timedelta(seconds=settings.connect_timeout_seconds),
        "user_agent": "pgrecall",
    }
    if settings.ca_file:
        try:
            with open(settings.ca_file, "rb") as file:
                options["root_certificate"] = file.read()
        except OSError as error:
            raise _bad(
                settings, f"cannot read ca_file {settings.ca_file}: {error.strerror}"
            ) from error
    return options


def _no_retries() -> RetryConfig:
    return {"max_retries": 0}


def _check_endpoint(settings: RepositorySettings) -> None:
    """An endpoint is a URL without credentials; http only where it is allowed."""
    if not settings.endpoint:
        return
    url = urlsplit(settings.endpoint)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise _bad(settings, "the endpoint is no URL such as https://s3.example.com")
    if url.username or url.password or url.query:
        raise _bad(settings, "the endpoint holds credentials or a query: give keys by reference")
    if url.scheme == "http" and not settings.allow_http:
        raise _bad(settings, "the endpoint has no TLS, and allow_http is false")


def _s3_endpoint(settings: RepositorySettings) -> str:
    """obstore wants the bucket in the host name of an endpoint that is not path style."""
    if settings.path_style:
        return settings.endpoint
    scheme, _, rest = settings.endpoint.partition("://")
    return f"{scheme}://{settings.bucket}.{rest}"


def _prefix_parts(settings: RepositorySettings) -> list[str]:
    return [part for part in settings.prefix.split("/") if part]


def _prefix(settings: RepositorySettings) -> str | None:
    return "/".join(_prefix_parts(settings)) or None


def _bad(settings: RepositorySettings, problem: str) -> SettingsError:
    return SettingsError(
        f"repository {settings.name}: {problem}",
        hint=f"see [repositories.{settings.name}] in pgrecall.toml, and docs/stores.md",
    )
