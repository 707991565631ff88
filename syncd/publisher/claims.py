"""Claims: who creates `versions/N/claim` owns the number N, for ever."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time


def claim_document(version: int) -> bytes:
    """A claim that differs from every other publisher's, so that a lost answer can be read back."""
    claim = {
        "format": "syncd.claim/1",
        "requires": [],
        "version": version,
        "node": socket.gethostname(),
        "pid": os.getpid(),
        "nonce": secrets.token_hex(16),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return json.dumps(claim, sort_keys=True, separators=(",", ":")).encode()
