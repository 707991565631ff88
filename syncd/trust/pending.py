"""Channel roles that their own key signs on one machine and a running publisher commits from another.

The signer takes a metadata number (create-only, so that it has one content for ever) and leaves the same bytes at
`pending/NAME-RELEASE.json`. Who commits them believes nothing but the signature that `targets` delegates to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from syncd.errors import DocumentInvalid, NotAuthentic, SyncdError
from syncd.trust import names
from syncd.trust.facts import ChannelFacts, parse_channel
from syncd.trust.sign import MODEL_FIELD, ModelSigner, SignedRole

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from syncd.trust.verify import SignedState

_NAME: Final = re.compile(r"pending/([a-z0-9][a-z0-9._-]{0,63})-([1-9][0-9]{0,15})\.json")


@dataclass(frozen=True)
class PendingRole:
    """A verified role that waits: what it says, and its bytes under their metadata number."""

    facts: ChannelFacts
    role: SignedRole


def parse_pending(name: str) -> tuple[str, int] | None:
    """Channel and release of `pending/NAME-RELEASE.json`; None for any other name."""
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def channel_signer(model: str, channel: str, own: Signer) -> ModelSigner:
    """Signs that channel's role and nothing else: the key of a channel is no online key."""
    return ModelSigner(model, own, {channel: own})


def verify_pending(
    state: SignedState, model: str, channel: str, release: int, data: bytes, now: float
) -> PendingRole:
    """A role that may be committed on top of `state`.

    Raises:
        NotAuthentic: not signed by the channel's key, expired, of another model, or overtaken.
        DocumentInvalid, NeedsNewerSyncd: it breaks the format.
    """
    where: dict[str, Any] = {"model": model, "channel": channel, "release": release}
    signed = _verified(state, channel, data, where)
    role = names.channel_role(channel)
    problem = (
        f"it is for model {signed.unrecognized_fields.get(MODEL_FIELD)!r}"
        if signed.unrecognized_fields.get(MODEL_FIELD) != model
        else f"it expired at {signed.expires}"
        if signed.expires.timestamp() <= now
        else f"its number {signed.version} was overtaken by {state.files[role].number}"
        if signed.version <= state.files[role].number
        else f"it has {len(signed.targets)} targets"
        if len(signed.targets) != 1
        else ""
    )
    if problem:
        raise NotAuthentic(f"the pending role cannot be committed: {problem}", **where)
    (target,) = signed.targets.values()
    found = f"sha256:{target.hashes.get('sha256')}"
    facts = parse_channel(model, channel, target.path, found, target.length, target.custom, {})
    if facts.release != release:
        raise DocumentInvalid(f"the pending role says release {facts.release}", **where)
    return PendingRole(facts, SignedRole(signed.version, data))


def _verified(state: SignedState, channel: str, data: bytes, where: Mapping[str, Any]) -> Any:
    from securesystemslib.exceptions import Error as SecuresystemslibError
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Targets

    role = names.channel_role(channel)
    try:
        above = Metadata[Targets].from_bytes(state.files["targets"].data).signed
        found = Metadata[Targets].from_bytes(data)
        if not isinstance(found.signed, Targets) or found.signed.delegations is not None:
            raise NotAuthentic("the pending role is no channel's role", **where)
        above.verify_delegate(role, found.signed_bytes, found.signatures)
        delegated = (above.delegations and above.delegations.roles) or {}
        for name in found.signed.targets:
            if not delegated[role].is_delegated_path(name):
                raise NotAuthentic(f"the channel's key may not sign {name!r:.100}", **where)
    except SyncdError:
        raise
    except (RepositoryError, SecuresystemslibError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotAuthentic(f"the pending role does not verify: {error}"[:400], **where) from error
    return found.signed
