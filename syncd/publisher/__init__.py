"""The publisher room: a finished checkpoint becomes a signed version in the store, once, whatever happens on the way.

in      candidates and checkpoints (checkpoint) · keys (trust) · what was published before (state)
out     packs, documents, and one commit that makes them visible together
never   publishes what is not proven complete · overwrites an object · moves a channel to an older version by itself
crash   before the timestamp moved nothing is visible; the next start claims a new number and finishes the work
read    pipeline.py → publish.py → commit.py → renew.py
"""
