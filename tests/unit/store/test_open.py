"""A configuration's URL becomes the right store, and nothing heavy is imported before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from syncd.config import StoreSection
from syncd.errors import ConfigInvalid, KeyInvalid
from syncd.store.base import public_url, validate_key
from syncd.store.cloud import CloudStore
from syncd.store.folder import FolderStore
from syncd.store.http import HttpStore
from syncd.store.open import open_store


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        ("/srv/models", FolderStore, "file:///srv/models"),
        ("file:///srv/my%20models", FolderStore, "file:///srv/my%20models"),
        ("file:/srv/models", FolderStore, "file:///srv/models"),
        ("s3://models/fleet", CloudStore, "s3://models/fleet"),
        ("gs://models", CloudStore, "gs://models"),
        ("az://models", CloudStore, "az://models"),
        ("https://user:password@host/fleet/?sig=1", HttpStore, "https://host/fleet"),
        ("http://host", HttpStore, "http://host"),
    ],
)
def test_each_scheme_opens_its_store_and_shows_no_secret(url: str, kind: type, shown: str) -> None:
    store = open_store(StoreSection(url=url))
    assert isinstance(store, kind)
    assert store.url == shown


@pytest.mark.parametrize("url", ["ftp://host/x", "file://host/x", "file://relative", "file:relative"])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid):
        open_store(StoreSection(url=url))


def test_a_relative_folder_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(StoreSection(url="store"), create=True)
    monkeypatch.chdir("/")
    assert store.url == (tmp_path / "store").as_uri()
    assert (tmp_path / "store").is_dir()


def test_opening_any_store_imports_no_heavy_library() -> None:
    code = """
import sys
from syncd.config import StoreSection
from syncd.store.open import open_store
for url in ("/srv/x", "s3://models", "gs://m", "az://m", "https://host/x"):
    open_store(StoreSection(url=url))
print(sorted({"obstore", "httpx", "boto3", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_keys_of_the_design_are_valid() -> None:
    for key in (
        "fleet/1.root.json",
        "models/resnet-50.v1_x/metadata/12.channel-stable.json",
        "models/m/packs/" + "0" * 64,
        "models/m/pending/stable-7.json",
        "_syncd-probe/00-create",
    ):
        validate_key(key)
    with pytest.raises(KeyInvalid, match=r"\.\./x"):
        validate_key("../x")


def test_a_shown_url_has_no_user_password_query_or_fragment() -> None:
    assert public_url("https://a:b@host:1/p?q=1#f") == "https://host:1/p"
