"""The model room: tensors on disk become a module that may predict, or a reason why not.

in      model.safetensors, model.digests, golden.safetensors of a version · an architecture's name and arguments
out     a module in eval mode, loaded beside the one that serves and sharing what did not change · golden samples
never   unpickles · downloads weights · imports what is not allowed by name · writes to a module that serves
crash   nothing of it is on disk but a golden sample, which the caller puts in place when it is whole
read    architecture.py → load.py → gate.py; golden.py is a program of its own (`python -m syncd.model.golden`)
"""
