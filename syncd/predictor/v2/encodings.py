"""gzip and deflate both ways: a request's body decompressed within a bound, an answer compressed if it is worth it."""

from __future__ import annotations

import zlib
from typing import Final

from syncd.predictor.v2.refusals import Refusal, bad_request, too_large

# What libraries ask for by themselves is not worth the time on a short answer; what names one encoding is meant.
WORTH_BYTES: Final = 1024
_LEVEL: Final = 1
_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_STEP: Final = 1 << 20


def decompress(data: bytes, encoding: str, limit: int) -> bytes:
    """The bytes behind `Content-Encoding`.

    Raises:
        Refusal: 415 for an encoding that this server does not know; 400 for bytes that are not of it or cut off; 413
            as soon as more than `limit` bytes come out.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return data
    if encoding in ("gzip", "x-gzip"):
        return _inflated(data, _GZIP, "gzip", limit)
    if encoding == "deflate":
        # The protocol means zlib's wrapping; some clients send the bare stream.
        wrapped = len(data) >= 2 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
        return _inflated(data, _ZLIB if wrapped else _RAW, "deflate", limit)
    raise Refusal(
        415, "encoding", f"Content-Encoding {encoding[:64]!r} is not understood: send gzip, deflate or none"
    )


def _inflated(data: bytes, wbits: int, name: str, limit: int) -> bytes:
    pieces: list[bytes] = []
    total = 0
    rest: bytes = data
    try:
        while rest:
            stream = zlib.decompressobj(wbits)
            while not stream.eof:
                piece = stream.decompress(rest, min(_STEP, limit - total + 1))
                rest = stream.unused_data if stream.eof else stream.unconsumed_tail
                pieces.append(piece)
                total += len(piece)
                if total > limit:
                    raise too_large(f"the body is more than {limit} bytes once its {name} is undone")
                if not piece and not rest and not stream.eof:
                    raise bad_request(f"the body's {name} is cut off")
            if wbits != _GZIP and rest:
                raise bad_request(f"{len(rest)} bytes follow the end of the body's {name}")
    except zlib.error as error:
        raise bad_request(f"the body is not {name}: {error}") from error
    return b"".join(pieces)


def wanted_encoding(accept: str, size: int) -> str | None:
    """The encoding for an answer of `size` bytes to a client that sent `Accept-Encoding: accept`; None: none."""
    if not accept:
        return None
    names = []
    for each in accept.lower().split(","):
        name, _, parameters = each.partition(";")
        if parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            names.append(name.strip())
    if size < WORTH_BYTES and len(names) > 1:
        return None
    return next((name for name in ("gzip", "deflate") if name in names), None)


def compress(data: bytes, encoding: str) -> bytes:
    """`data` under `encoding`, which is gzip or deflate."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if encoding == "gzip" else _ZLIB)
    return stream.compress(data) + stream.flush()
