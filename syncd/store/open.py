"""Opens the store that a configuration names; nothing is asked of it yet, its library is imported at its first use."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from syncd.config import StoreSection
from syncd.errors import ConfigInvalid
from syncd.store.base import Store, public_url

SCHEMES = ("file", "s3", "gs", "az", "https", "http")


def open_store(section: StoreSection, *, create: bool = False) -> Store:
    """The store of `[store]`: a folder for file:// or a bare path, a cloud, or http(s), which is read-only.

    Args:
        create: make a folder store that is not there yet (`syncd init` alone; blocks for a few fsyncs).
    Raises:
        ConfigInvalid: the URL is none that syncd knows, or a key does not belong to its kind.
        StoreDenied: `create` was asked for and is not allowed there.
    """
    parts = urlsplit(section.url)
    if "://" not in section.url or section.url.startswith("file:"):
        from syncd.store.folder import FolderStore

        return FolderStore(_folder(section.url), create=create)
    if parts.scheme in ("s3", "gs", "az"):
        from syncd.store.cloud import CloudStore

        return CloudStore(section)
    if parts.scheme in ("https", "http"):
        from syncd.store.http import HttpStore

        return HttpStore(section)
    raise ConfigInvalid(
        f"store.url {public_url(section.url)!r} begins with none of {', '.join(SCHEMES)}",
        do='write a folder ("file:///srv/models"), "s3://bucket/path" or "https://host/path"',
    )


def _folder(url: str) -> Path:
    if not url.startswith("file:"):
        return Path(url).expanduser()
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ConfigInvalid(
            f"store.url {public_url(url)!r} names a host",
            do='a folder has three slashes: "file:///srv/models"',
        )
    return Path(unquote(parts.path))
