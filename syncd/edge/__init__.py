"""The edge room: brings one model from the store to this disk, and knows after any crash how far it got.

in      a channel's verified release (trust) · pack bytes (store) · what this node has (state.db)
out     `versions/N/` whole, `next` and `current` pointing where they should
never   sees a pickle · imports torch · touches the version that serves · needs a network to start
crash   anything under `incoming/` may be torn, nothing outside it ever is
read    transitions.py (the table of states) → follow.py → poll.py → fetch.py → install.py → activate.py → retention.py;
        pull.py and restore.py do the fetching for a person, verify.py reads every byte again
"""
