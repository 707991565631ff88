"""The store room: where versions lie. A folder, an S3-like cloud, or any HTTP server in front of either.

in      keys, bytes, conditions (create-only, compare-and-set)
out     bytes with their ETag, never more than the caller's limit
never   looks inside an object · decides what is authentic · creates a store that is not there, save for `syncd init`
read    base.py → folder.py → cloud.py → http.py; open.py picks one, probe.py proves one honest
"""
