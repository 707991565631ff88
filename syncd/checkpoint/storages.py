"""The storages that a pickle refers to by persistent id, and where a format found them in the file."""

from __future__ import annotations

from typing import Any, Final

from syncd.checkpoint.rebuild import StorageView, storage_type
from syncd.checkpoint.values import Malformed, Name, Record, Storage

MAX_ELEMENTS: Final = 1 << 60


class Storages:
    """Storages by key, in the order of their first mention; `legacy` files add a view to the persistent id."""

    def __init__(self, *, legacy: bool = False) -> None:
        self.by_key: dict[str, Storage] = {}
        self._legacy = legacy

    def load(self, persistent_id: Any) -> Any:
        """The StorageView that a persistent id means; a legacy `("module", class, …)` gives the class's name.

        Raises:
            Malformed: the id is not one that torch writes, or contradicts an earlier one of the same key.
        """
        if not isinstance(persistent_id, tuple) or not persistent_id:
            return Record(Name("", "persistent id"), (persistent_id,))
        if persistent_id[0] == "module" and self._legacy and len(persistent_id) > 1:
            return persistent_id[1]
        if persistent_id[0] != "storage" or len(persistent_id) < 5:
            return Record(Name("", "persistent id"), persistent_id)
        _, kind, key, _location, elements = persistent_id[:5]
        dtype, item_bytes = storage_type(kind)
        storage = self._storage(key, item_bytes, elements)
        view = persistent_id[5] if self._legacy and len(persistent_id) > 5 else None
        return StorageView(storage, dtype, _view_start(view))

    def _storage(self, key: Any, item_bytes: int, elements: Any) -> Storage:
        if type(key) is not str or type(elements) is not int or not 0 <= elements <= MAX_ELEMENTS:
            raise Malformed("a storage without a key or a length")
        known = self.by_key.get(key)
        if known is None:
            known = self.by_key[key] = Storage(key, item_bytes, elements)
        elif known.bytes != item_bytes * elements:
            raise Malformed(f"storage {key[:40]} has two lengths: {known.bytes} and {item_bytes * elements}")
        return known


def _view_start(view: Any) -> int:
    """The first element of a legacy view (key, offset, elements); 0 without one."""
    if view is None:
        return 0
    if not isinstance(view, tuple) or len(view) != 3 or type(view[1]) is not int or view[1] < 0:
        raise Malformed("a storage view that torch does not write")
    return view[1]
