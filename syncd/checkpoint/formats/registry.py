"""Which format reads a file: asked in order, the surest first. A new kind is one module and one row here."""

from __future__ import annotations

from typing import Final, Protocol

from syncd.checkpoint.formats import refused, safetensors, torch_legacy, torch_zip
from syncd.checkpoint.source import Source
from syncd.checkpoint.values import Hostile, Incomplete, Malformed, Unsupported
from syncd.checkpoint.walk import Tables

HEAD_BYTES: Final = 512


class Format(Protocol):
    """What a module of a kind offers."""

    KIND: str

    def recognise(self, head: bytes, name: str) -> bool:
        """Whether a file that begins with `head` (up to 512 bytes) and has this name is of the kind."""

    def parse(self, source: Source) -> Tables:
        """Prove the file complete and say where its tensors lie; raises the four outcomes of values.py."""


_FORMATS: Final[tuple[Format, ...]] = (torch_zip, torch_legacy, safetensors)
_MAGICS: Final = (b"PK\3\4", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def parse_file(source: Source) -> Tables:
    """Tables of the file by the first format that recognises it.

    Raises:
        Incomplete: it may become a checkpoint when training has finished writing.
        Unsupported: it is something else; the message names it.
        Hostile: it breaks a bound, or its format.
    """
    head = source.head(HEAD_BYTES)
    written = head.rstrip(b"\0")
    if any(magic.startswith(written) and len(written) < len(magic) for magic in _MAGICS):
        raise Incomplete(f"only its first {len(written)} bytes are written")
    for each in _FORMATS:
        if each.recognise(head, source.name):
            try:
                return each.parse(source)
            except Malformed as error:
                raise Hostile(str(error)) from None
    raise Unsupported(refused.name_file(head, source.name))
