"""The state room: what one process must remember over a restart, in one SQLite file that it alone may read.

in      facts that the publisher and the edge found out · intentions before they are carried out
out     the same facts after any kill or power cut; events and counters for the status endpoint
never   holds weights or secrets · says what is authentic (trust does) or what serves (the links do)
crash   every change is one transaction; the file is whole at all times
read    db.py → published.py, installed.py → events.py
"""
