"""The node folder's versions, links and locks: what `NODE_FOLDER.md` says, as code for both of its sides."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from syncd.durable import fsync_folder, make_folder, replace_file, replace_link, settle_tree
from syncd.errors import DocumentInvalid, NodeBusy, NotInstalled, UnknownModel

LinkName = Literal["next", "current", "previous"]
LINKS: Final[tuple[LinkName, ...]] = ("next", "current", "previous")

MODEL_FILE: Final = "model.safetensors"
DIGESTS_FILE: Final = "model.digests"
HEAD_FILE: Final = "head.json"
GOLDEN_FILE: Final = "golden.safetensors"
FILES_FOLDER: Final = "files"
RESERVED: Final = frozenset({MODEL_FILE, DIGESTS_FILE, HEAD_FILE, FILES_FOLDER, ".syncd"})

MAX_VERSION: Final = 2**53 - 1
MAX_OFFER_BYTES: Final = 4096

# The same as config.MODEL_NAME, which would cost every predictor an import of pydantic.
_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,15}")
_TARGET = re.compile(r"versions/([1-9][0-9]{0,15})")
_RETIRED = ".retired-"


class FolderLock:
    """An flock that lives until `close()`, the end of a `with`, the end of the process, or the loss of this object."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def descriptor(self) -> int:
        """The locked descriptor; for a version a read-only one of its folder, to open files below."""
        return self._descriptor

    def close(self) -> None:
        """Give the lock back. A copy that a forked child inherited is closed there, which leaves ours in force."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class VersionLock(FolderLock):
    """The shared lock of one installed version: while it is held the version's folder is not deleted."""

    def __init__(self, descriptor: int, version: int, path: Path) -> None:
        super().__init__(descriptor)
        self.version = version
        self.path = path


@dataclass(frozen=True)
class Look:
    """What a link shows at one moment; `identity` changes each time the link is made, even with the same target."""

    version: int | None
    identity: tuple[int, int, int] | None


@dataclass(frozen=True)
class Offer:
    """What the daemon asks of voters: gate `version`, within `gate_within_s` seconds, for the `attempt`-th time."""

    version: int
    attempt: int
    gate_within_s: float


class ModelFolder:
    """One model's part of the node folder. Methods block, and are short except `place_version` and `remove_version`."""

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.model = model

    @property
    def incoming(self) -> Path:
        """The daemon's workshop: what lies here may be torn, nothing outside it ever is."""
        return self.path / "incoming"

    @property
    def followers(self) -> Path:
        """Where followers leave their locks and reports."""
        return self.path / "followers"

    def make(self) -> None:
        """Create the model's folders with their modes; those that exist are left alone. The daemon alone calls it."""
        for folder, mode in (
            (self.path / "versions", 0o755),
            (self.incoming, 0o700),
            (self.followers, 0o3770),
        ):
            if not folder.is_dir():
                make_folder(folder, mode)

    def version_folder(self, version: int) -> Path:
        """Where `version` lies, installed or not."""
        return self.path / "versions" / str(version)

    def versions(self) -> list[int]:
        """The installed versions, ascending; half-deleted ones are not among them."""
        try:
            names = os.listdir(self.path / "versions")  # noqa: PTH208
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if _VERSION.fullmatch(name))

    def look(self, name: LinkName) -> Look:
        """The link's version and identity, as cheap as two system calls.

        Raises:
            DocumentInvalid: the name is there and is no link to `versions/N`.
        """
        link = self.path / name
        try:
            found = link.lstat()
            target = os.readlink(link) if stat.S_ISLNK(found.st_mode) else "(not a link)"  # noqa: PTH115 - as it is, slashes and all
        except FileNotFoundError:
            return Look(None, None)
        matched = _TARGET.fullmatch(target)
        if not matched or int(matched[1]) > MAX_VERSION:
            raise DocumentInvalid(
                f"{link} should be a link to versions/N and is {target!r}",
                do="something other than syncd wrote there: remove it; the daemon makes it anew",
                model=self.model,
            )
        return Look(int(matched[1]), (found.st_ino, found.st_mtime_ns, found.st_ctime_ns))

    def read_link(self, name: LinkName) -> int | None:
        """The version that `name` points at, None where there is no such link; DocumentInvalid as in `look`."""
        return self.look(name).version

    def set_link(self, name: LinkName, version: int | None) -> None:
        """Point `name` at an installed version, durably and in one step; None removes it. The daemon alone calls it.

        Raises:
            NotInstalled: there is no such version: a link never dangles.
        """
        if version is None:
            (self.path / name).unlink(missing_ok=True)
            fsync_folder(self.path)
            return
        if not self.version_folder(version).is_dir():
            raise NotInstalled(f"version {version} is not installed", model=self.model, version=version)
        replace_link(self.path / name, f"versions/{version}")

    def offer(self, version: int, *, attempt: int, gate_within_s: float) -> None:
        """Ask voters to gate `version`: `offer.json` first, then `next`, whose new identity makes followers look."""
        document = {
            "format": "syncd.offer/1",
            "version": version,
            "attempt": attempt,
            "gate_within_s": gate_within_s,
        }
        replace_file(self.path / "offer.json", _json_bytes(document), 0o644)
        self.set_link("next", version)

    def read_offer(self) -> Offer | None:
        """The last offer, None where there is none; `next` says whether it still stands.

        Raises:
            DocumentInvalid: not an offer of a format that this syncd knows.
        """
        path = self.path / "offer.json"
        try:
            with path.open("rb") as file:
                document = json.loads(file.read(MAX_OFFER_BYTES))
            if document["format"] != "syncd.offer/1":
                raise ValueError(f"format is {document['format']!r}")
            return Offer(int(document["version"]), int(document["attempt"]), float(document["gate_within_s"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DocumentInvalid(f"{path} is not an offer: {error}", model=self.model) from error

    def activate(self, version: int) -> None:
        """Make `version` serve: `previous` keeps what served, then `current` moves, then `next` goes.

        Killed in between it is called again with the same version and ends in the same state.
        """
        serving = self.read_link("current")
        if serving is not None and serving != version:
            self.set_link("previous", serving)
        if serving != version:
            self.set_link("current", version)
        if self.read_link("next") == version:
            self.set_link("next", None)

    def lock_version(self, version: int) -> VersionLock:
        """Take the version's shared lock: it is in use and will not be deleted.

        Raises:
            NotInstalled: there is no such version, or it is being deleted.
        """
        path = self.version_folder(version)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotInstalled(
                f"version {version} is not installed", model=self.model, version=version
            ) from error
        lock = VersionLock(descriptor, version, path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:  # only a deletion locks exclusively
            lock.close()
            raise NotInstalled(
                f"version {version} is being deleted", model=self.model, version=version
            ) from error
        return lock

    def lock_linked(self, name: LinkName) -> VersionLock | None:
        """Follow `name` safely: read it, lock its version, read it again, until both readings agree; None: no link."""
        while (version := self.read_link(name)) is not None:
            try:
                lock = self.lock_version(version)
            except NotInstalled:
                if self.read_link(name) == version:
                    raise
                continue
            if self.read_link(name) == version:
                return lock
            lock.close()
        return None

    def version_in_use(self, version: int) -> bool:
        """Whether a link points at `version` or any process holds its lock; False for one that is not installed."""
        if version in {self.read_link(name) for name in LINKS}:
            return True
        lock = self._exclusive(version)
        if lock is not None:
            lock.close()
            return False
        return self.version_folder(version).is_dir()

    def remove_version(self, version: int) -> bool:
        """Delete an installed version unless it is in use; the daemon alone calls it.

        Returns: False where the version is linked or locked, and then nothing is changed.
        """
        if version in {self.read_link(name) for name in LINKS}:
            return False
        lock = self._exclusive(version)
        if lock is None:
            return not self.version_folder(version).exists()
        with lock:
            retired = self.path / "versions" / f"{_RETIRED}{version}"
            if retired.exists():
                shutil.rmtree(retired)
            self.version_folder(version).rename(retired)
            fsync_folder(self.path / "versions")
            shutil.rmtree(retired)
        return True

    def sweep(self) -> None:
        """Finish deletions that a kill cut off; at the daemon's start."""
        for each in (self.path / "versions").glob(f"{_RETIRED}*"):
            shutil.rmtree(each)

    def place_version(self, version: int, staged: Path) -> Path:
        """Install a finished folder of `incoming/` as `versions/N`: modes, fsync of every file, one rename, fsync.

        Raises:
            FileExistsError: the version is installed already; `staged` is untouched.
        """
        target = self.version_folder(version)
        if target.exists():
            raise FileExistsError(target)
        settle_tree(staged, 0o444)
        staged.rename(target)
        fsync_folder(target.parent)
        if staged.parent.is_dir():
            fsync_folder(staged.parent)
        return target

    def _exclusive(self, version: int) -> FolderLock | None:
        try:
            descriptor = os.open(self.version_folder(version), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        lock = FolderLock(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock


class NodeFolder:
    """The node folder of one machine; `path` may not exist yet."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def make(self) -> None:
        """Create the folder (0750) and `models/`; those that exist are left alone. The daemon alone calls it."""
        if not self.path.is_dir():
            make_folder(self.path, 0o750)
        if not (self.path / "models").is_dir():
            make_folder(self.path / "models", 0o755)

    def models(self) -> list[str]:
        """The names of the models that have a folder here, sorted."""
        try:
            names = os.listdir(self.path / "models")  # noqa: PTH208
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _MODEL.fullmatch(name))

    def model_folder(self, model: str) -> ModelFolder:
        """The part of one model, there or not; UnknownModel for a name that no model can have."""
        if not _MODEL.fullmatch(model):
            raise UnknownModel(f"{model!r} is not a model's name: {_MODEL.pattern}")
        return ModelFolder(self.path / "models" / model, model)

    def daemon_lock(self) -> FolderLock:
        """Become the only daemon of this folder.

        Raises:
            NodeBusy: another process is; its pid is told where it can be known.
        """
        self.make()
        path = self.path / "daemon.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        lock = FolderLock(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            lock.close()
            raise NodeBusy(
                f"another daemon (pid {holder}) holds {self.path}",
                do="stop it, or give this one another [node] folder; nothing was changed",
                path=self.path,
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return lock


def _json_bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
