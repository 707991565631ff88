"""The trust room: whose bytes these are, by The Update Framework; bytes ↔ facts, it decides nothing.

in      a store · the fleet root that `init` or `join` wrote · key files (publishers)
out     the verified facts of a channel, the verified index and documents · signed metadata (publishers)
never   acts on what is not verified · leaves a trace of a failed poll · uses a metadata number for two contents
crash   metadata is refreshed in a copy that one rename puts in place; receipts are written last and only ever grow
read    names.py → sign.py → verify.py → fetcher.py → receipts.py; keys.py for publishers
"""
