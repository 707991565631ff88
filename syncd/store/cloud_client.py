"""Makes the obstore clients of a `[store]` section: time limits, repeats, proxy, authorities, credentials."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from syncd.config import StoreSection
from syncd.errors import ConfigInvalid, StoreDenied
from syncd.store.base import public_url, validate_prefix

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

RETRIES = 3
READ_TIMEOUT_S = 20.0


def check_section(section: StoreSection) -> None:
    """Refuse what cannot be meant, before anything is asked."""
    parts = urlsplit(section.url)
    if not parts.netloc or "@" in parts.netloc or parts.query:
        what = f"store.url {public_url(section.url)!r} is not {parts.scheme}://bucket/path"
        raise ConfigInvalid(what, do="credentials belong into the environment or ~/.aws, never into the URL")
    if parts.path.strip("/"):
        validate_prefix(parts.path.strip("/"))
    if section.client_cert:
        raise ConfigInvalid(
            f"store.client_cert does not work with {parts.scheme}://", do="it is for https:// alone"
        )
    if section.profile and parts.scheme != "s3":
        raise ConfigInvalid(f"store.profile does not work with {parts.scheme}://", do="it is for s3:// alone")


def make_clients(section: StoreSection, read_timeout_s: float) -> tuple[ObjectStore, ObjectStore]:
    """A client that repeats what is safe to repeat, and one that never does, for conditional puts."""
    options: ClientConfig = {
        "timeout": timedelta(minutes=30),
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=read_timeout_s),
        "allow_http": (section.endpoint or "").startswith("http://"),
    }
    if section.proxy:
        options["proxy_url"] = section.proxy
    if section.ca_file:
        options["root_certificate"] = _pem(section.ca_file)
    credentials = _aws_credentials(section) if section.url.startswith("s3:") else None
    made = [_make_client(section, options, credentials, retries) for retries in (RETRIES, 0)]
    return made[0], made[1]


def _make_client(section: StoreSection, options: ClientConfig, credentials: Any, retries: int) -> ObjectStore:
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    parts = urlsplit(section.url)
    retry: RetryConfig = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=60),
        "backoff": {
            "init_backoff": timedelta(milliseconds=200),
            "max_backoff": timedelta(seconds=5),
            "base": 2,
        },
    }
    given: dict[str, Any] = {
        "prefix": parts.path.strip("/") or None,
        "client_options": options,
        "retry_config": retry,
    }
    if section.endpoint:
        given["endpoint"] = section.endpoint
    try:
        if parts.scheme == "gs":
            return GCSStore(parts.netloc, **given)
        if parts.scheme == "az":
            return AzureStore(parts.netloc, **given)
        region = section.region or _region(credentials)
        given |= {"region": region} | ({"credential_provider": credentials} if credentials else {})
        # The request is signed, its body is not: TLS guards it on the way, and every reader checks digest or signature.
        # Signing it too is another SHA-256 of every byte, two thirds of what a put costs here.
        return S3Store(parts.netloc, unsigned_payload=True, **given)
    except (BaseError, ValueError) as error:
        raise StoreDenied(f"{public_url(section.url)} cannot be opened", why=reason(str(error))) from None


def _region(credentials: Any) -> str:
    known = credentials.config.get("region") if credentials else None
    return known or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _aws_credentials(section: StoreSection) -> Any:
    """boto3's chain where it is installed (profiles, SSO, ~/.aws); None leaves obstore to the environment."""
    if not section.profile and "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    try:
        import boto3
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped,import-not-found,unused-ignore]
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if section.profile:
            what = f"store.profile {section.profile!r} needs boto3, which is not installed"
            raise ConfigInvalid(what, do="pip install 'syncd[aws]'") from None
        return None
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=section.profile))
    except (BotoCoreError, ValueError) as error:
        raise StoreDenied(
            f"there are no AWS credentials for {public_url(section.url)}",
            why=str(error)[:200],
            do="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or store.profile, or log in with `aws sso login`",
        ) from None


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"store.ca_file {path} cannot be read: {error.strerror}") from error


def reason(text: str) -> str:
    """The first line of an obstore error without query strings, which may be signatures."""
    first = text.strip().partition("\n")[0].removesuffix('<?xml version="1.0" encoding="UTF-8"?>')
    return re.sub(r"\?\S+", "", first).strip(" :")[:300]
