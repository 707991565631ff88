"""The edge room: brings one model from the store to this disk, and knows after any crash how far it got.

in      a channel's verified release (trust) · pack bytes (store) · what this node has (state.db)
out     `versions/N/` whole, `next` and `current` pointing where they should
never   sees a pickle · imports torch · touches the version that serves · needs a network to start
crash   anything under `incoming/` may be torn, nothing outside it ever is
read    transitions.py (the table; drawn in STATES.md) → follow.py (drives it) → actions.py (what it does) → poll.py →
        fetch.py → install.py → votes.py → activate.py → retention.py; pull.py and restore.py fetch for a person,
        verify.py reads every byte again; FILES.md lists what lies where
"""
