"""Every way syncd can fail: what, where, why, what to do and what was not lost.

SyncdError
├── InternalError              1  internal · Interrupted 130 interrupted
├── UsageError                 2  usage
│   ├── ConfigInvalid          2  config-invalid
│   └── Unknown                2  unknown-model · unknown-version · unknown-channel (class attribute per kind)
├── Failed                     1  failed
│   ├── CheckpointUnreadable   1  checkpoint-unreadable
│   ├── CheckpointVanished     1  checkpoint-vanished        retry
│   ├── CheckpointUnsupported  1  checkpoint-unsupported
│   ├── ModelAmbiguous         2  model-ambiguous
│   ├── NodeBusy               1  node-busy
│   ├── DiskFull               1  disk-full                  retry
│   ├── PortBusy               1  port-busy
│   ├── DaemonSilent           1  daemon-silent
│   ├── Denied                 1  denied
│   ├── NotInstalled           1  not-installed
│   ├── KeyUnusable            1  key-unusable
│   ├── ArchitectureRefused    1  architecture-refused
│   ├── GateRefused            1  gate-refused
│   └── LostRace               1  lost-race                  retry
├── Refused                    3  refused
│   ├── CheckpointIncomplete   3  checkpoint-incomplete      retry
│   ├── CheckpointChanged      3  checkpoint-changed         retry
│   ├── CheckpointHostile      3  checkpoint-hostile
│   ├── NotAuthentic           3  not-authentic
│   │   ├── RolledBack         3  rolled-back
│   │   └── Expired            3  expired
│   ├── DocumentInvalid        3  document-invalid
│   ├── NeedsNewerSyncd        3  needs-newer-syncd
│   └── SegmentCorrupt         3  segment-corrupt
└── StoreError                 4  store
    ├── StoreUnreachable       4  store-unreachable          retry
    ├── StoreDenied            4  store-denied
    ├── StoreFull              4  store-full                 retry
    ├── StoreDishonest         4  store-dishonest
    ├── StoreBroken            4  store-broken               retry
    ├── StoreReadOnly          4  store-read-only
    ├── ObjectMissing          4  object-missing
    ├── ObjectExists           4  object-exists
    ├── ObjectChanged          4  object-changed
    ├── ObjectTooLarge         4  object-too-large
    ├── StoreCannot            4  store-cannot
    └── KeyInvalid             4  key-invalid
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar


class SyncdError(Exception):
    """The root of the tree.

    Args:
        what: one sentence with the values that matter.
        why: the likely cause, if it is known.
        do: what the reader can do, and what is not lost.
        where: where it happened, as names and values (model=…, version=…, path=…).
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1
    retry: ClassVar[bool] = False

    def __init__(self, what: str, *, why: str = "", do: str = "", **where: Any) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.do = do
        self.where: dict[str, Any] = where

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        if self.where:
            lines.append("  where  " + ", ".join(f"{name}={value}" for name, value in self.where.items()))
        if self.why:
            lines.append(f"  why    {self.why}")
        if self.do:
            lines.append(f"  do     {self.do}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The error as INTERFACE's JSON object: code, what, where, why, do."""
        where = {name: _plain(value) for name, value in self.where.items()}
        return {"code": self.code, "what": self.what, "where": where, "why": self.why, "do": self.do}


def first_of(error: BaseException) -> BaseException:
    """What to tell of a task group's failure: the first error of syncd's own in it, else the first of all."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    flat = [first_of(each) for each in error.exceptions]
    return next((each for each in flat if isinstance(each, SyncdError)), flat[0])


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


@contextlib.contextmanager
def about(**where: Any) -> Iterator[None]:
    """Add where it happened to every SyncdError that passes; what is already known wins."""
    try:
        yield
    except SyncdError as error:
        error.where = {**where, **error.where}
        raise


class InternalError(SyncdError):
    """A bug of syncd's own."""

    code = "internal"


class Interrupted(SyncdError):
    """Ctrl-C; nothing is half-done."""

    code = "interrupted"
    exit_status = 130


class UsageError(SyncdError):
    """The command, its flags or its configuration are wrong; nothing was done."""

    code = "usage"
    exit_status = 2


class ConfigInvalid(UsageError):
    """The configuration has mistakes; `findings` holds all of them, each with line and key path."""

    code = "config-invalid"

    def __init__(self, what: str, *, findings: list[dict[str, Any]] | None = None, **rest: Any) -> None:
        super().__init__(what, **rest)
        self.findings = findings or []

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "findings": self.findings}

    def __str__(self) -> str:
        first, *rest = super().__str__().splitlines()
        return "\n".join([first, *(_finding_text(finding) for finding in self.findings), *rest])


def _finding_text(finding: dict[str, Any]) -> str:
    place = ":".join(str(finding[part]) for part in ("file", "line") if finding.get(part))
    value = f" = {finding['value']!r}" if finding.get("value") is not None else ""
    key = f" {finding['key']}{value}:" if finding.get("key") else ""
    meant = f"; did you mean {finding['nearest']}?" if finding.get("nearest") else ""
    allowed = f" (allowed: {finding['allowed']})" if finding.get("allowed") else ""
    return f"  {place or 'configuration'}:{key} {finding['problem']}{meant}{allowed}"


class UnknownModel(UsageError):
    """The store has no such model."""

    code = "unknown-model"


class UnknownVersion(UsageError):
    """The model has no such version, or it is no longer kept."""

    code = "unknown-version"


class UnknownChannel(UsageError):
    """The model has no such channel."""

    code = "unknown-channel"


class ModelAmbiguous(UsageError):
    """More than one group of tensors could be the model; `do` holds the config line to write."""

    code = "model-ambiguous"


class Failed(SyncdError):
    """Something that can be mended failed; `do` says how."""

    code = "failed"


class CheckpointUnreadable(Failed):
    """The operating system does not let this user read the checkpoint."""

    code = "checkpoint-unreadable"


class CheckpointVanished(Failed):
    """The checkpoint is no longer there: rotated away by training."""

    code = "checkpoint-vanished"
    retry = True


class CheckpointUnsupported(Failed):
    """The kind of checkpoint is known or guessed, but this syncd does not read it."""

    code = "checkpoint-unsupported"


class NodeBusy(Failed):
    """Another daemon or command holds the node folder."""

    code = "node-busy"


class DiskFull(Failed):
    """The disk has no room for what was to be written; nothing that was there is lost."""

    code = "disk-full"
    retry = True


class PortBusy(Failed):
    """The address to listen on is taken."""

    code = "port-busy"


class DaemonSilent(Failed):
    """No daemon answers at the status address.

    `nobody_listens`: there is none, rather than one that keeps silent.
    """

    code = "daemon-silent"
    nobody_listens: bool = False


class Denied(Failed):
    """The daemon does not let this user, or who brings this token, do that; nothing was changed."""

    code = "denied"


class NotInstalled(Failed):
    """No version of the model is installed on this node yet."""

    code = "not-installed"


class KeyUnusable(Failed):
    """A signing key is missing, open to others, locked by a passphrase, or not the one that the store names."""

    code = "key-unusable"


class ArchitectureRefused(Failed):
    """The architecture is not allowed here, does not exist, or does not fit the tensors."""

    code = "architecture-refused"


class GateRefused(Failed):
    """The gate refused a version; the version that serves goes on serving."""

    code = "gate-refused"


class LostRace(Failed):
    """Another publisher committed first; plan anew."""

    code = "lost-race"
    retry = True


class Refused(SyncdError):
    """Not authentic, not complete or not intact: nothing of it was used."""

    code = "refused"
    exit_status = 3


class CheckpointIncomplete(Refused):
    """The checkpoint is not proven complete: still being written, or cut off."""

    code = "checkpoint-incomplete"
    retry = True


class CheckpointChanged(Refused):
    """The checkpoint changed while it was read; the attempt was dropped."""

    code = "checkpoint-changed"
    retry = True


class CheckpointHostile(Refused):
    """The checkpoint breaks a bound that no honest file breaks; nothing in it was executed."""

    code = "checkpoint-hostile"


class NotAuthentic(Refused):
    """A document is not signed by whom it must be, or belongs to another model."""

    code = "not-authentic"


class RolledBack(NotAuthentic):
    """The store offers something older than what this node has accepted."""

    code = "rolled-back"


class Expired(NotAuthentic):
    """A signed document has passed its expiry."""

    code = "expired"


class DocumentInvalid(Refused):
    """A document is signed and intact but breaks its format."""

    code = "document-invalid"


class NeedsNewerSyncd(Refused):
    """A document needs a later syncd; the version that serves goes on serving."""

    code = "needs-newer-syncd"


class SegmentCorrupt(Refused):
    """Bytes from the store or the disk do not have the digest that was signed."""

    code = "segment-corrupt"


class StoreError(SyncdError):
    """The store could not do what was asked."""

    code = "store"
    exit_status = 4


class StoreUnreachable(StoreError):
    """No answer, or none that made sense, within the time limit."""

    code = "store-unreachable"
    retry = True


class StoreDenied(StoreError):
    """The store refused the credentials or what they may do."""

    code = "store-denied"


class StoreFull(StoreError):
    """The store has no room left."""

    code = "store-full"
    retry = True


class StoreDishonest(StoreError):
    """The store accepts conditional puts and ignores the condition: two publishers would destroy each other."""

    code = "store-dishonest"


class StoreBroken(StoreError):
    """The store answered against its protocol: a short body, a range that was not asked for."""

    code = "store-broken"
    retry = True


class StoreReadOnly(StoreError):
    """This kind of store cannot be written to."""

    code = "store-read-only"


class ObjectMissing(StoreError):
    """There is no object of that name."""

    code = "object-missing"


class ObjectExists(StoreError):
    """A create-only put found the name taken."""

    code = "object-exists"


class ObjectChanged(StoreError):
    """A compare-and-set found another content than expected."""

    code = "object-changed"


class ObjectTooLarge(StoreError):
    """An object is larger than the limit for its kind; it was not read to the end."""

    code = "object-too-large"


class StoreCannot(StoreError):
    """This kind of store does not offer the operation at all."""

    code = "store-cannot"


class KeyInvalid(StoreError):
    """A name that no object can have; nothing was asked of the store."""

    code = "key-invalid"
