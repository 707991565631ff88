"""The artifact room: how a version is written down. Bytes in, bytes out; no files, no network, no torch.

in      what a checkpoint holds (names, dtypes, shapes, places of bytes) · bytes of documents and segments from anywhere
out     head, layout, segment table, index, delta document, packs · encoded and decoded segments · plans
never   opens a file · trusts a size, an offset or a name · hands a decoder bytes whose digest was not checked
read    FORMATS.md (normative) → layout.py, cut.py → segment.py, codecs/ → pack.py, table.py → head.py → plan.py
"""
