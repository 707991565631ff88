"""The checkpoint room: finds what training wrote, proves it complete, reads everything and runs nothing.

in      a file that training wrote, and may be writing, rotating or deleting right now
out     a `Checkpoint` with descriptors opened before reading, a table of its tensors · a `Selection`: the model
never   executes, imports or looks up anything that a checkpoint names · maps a file · imports torch
crash   nothing is written here, so nothing can be torn
read    read.py → isolate.py → child.py → formats/ → unpickle.py → walk.py; then select.py; watch.py and settle.py
"""
