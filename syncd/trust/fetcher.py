"""What python-tuf asks for, from what was prefetched or from the store; a foreign root is refused before it sees it.

python-tuf would store another model's root, signed by the same fleet key, and never accept the right one again.
Imports tuf: loaded where a refresh runs, not before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from syncd.errors import NotAuthentic, ObjectMissing, ObjectTooLarge, StoreBroken, StoreDenied, SyncdError
from syncd.trust import names
from syncd.trust.sign import MODEL_FIELD

_NOT_FOUND = 404


class StoreFetcher(FetcherInterface):
    """Runs in the thread of one refresh.

    Args:
        fetched: name → bytes, or the error that asking for it gave.
        get: asks the store (blocking) for a name of at most so many bytes.
    """

    def __init__(
        self, model: str, fetched: Mapping[str, bytes | SyncdError], get: Callable[[str, int], bytes]
    ) -> None:
        self._model = model
        self._fetched = fetched
        self._get = get

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError("the whole of it, with a limit, is what download_bytes gives")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """The bytes of `url` (a name below the model's folder), at most `max_length`.

        Errors of ours pass through python-tuf as they are: it catches its own alone.
        """
        numbered = names.parse_metadata(url)
        if numbered is None or numbered[1] != "root":
            return self._document(url, max_length)
        try:
            data = self._bytes(url, max_length)
        except (
            ObjectMissing,
            StoreDenied,
        ) as error:  # some clouds deny what is missing to those who may not list
            raise DownloadHTTPError(f"there is no {url}", _NOT_FOUND) from error
        self._refuse_foreign_root(data, numbered[0])
        return data

    def _document(self, name: str, limit: int) -> bytes:
        try:
            return self._bytes(name, limit)
        except ObjectMissing as error:
            raise StoreBroken(
                f"the store's signed metadata names {name}, which is not there",
                why="an incomplete copy of the store, or one that is being made",
                do="nothing was changed: the next poll looks again",
                model=self._model,
            ) from error

    def _bytes(self, name: str, limit: int) -> bytes:
        found = self._fetched.get(name)
        try:
            if isinstance(found, SyncdError):
                raise found
            data = self._get(name, limit) if found is None else found
        except ObjectTooLarge as error:
            raise _endless(self._model, name, limit) from error
        if len(data) > limit:
            raise _endless(self._model, name, limit)
        return data

    def _refuse_foreign_root(self, data: bytes, number: int) -> None:
        try:
            model = json.loads(data)["signed"].get(MODEL_FIELD)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise NotAuthentic(f"root {number} is not metadata", model=self._model) from error
        if model != self._model:
            raise NotAuthentic(
                f"root {number} is for model {model!r}, not for {self._model!r}",
                why="another model's metadata lies where this model's should",
                do="nothing was changed: what serves goes on serving",
                model=self._model,
            )


def _endless(model: str, name: str, limit: int) -> NotAuthentic:
    return NotAuthentic(
        f"{name} has more than the {limit} bytes that it may have; it was not read to the end",
        why="nothing signed is that large",
        do="nothing was changed: what serves goes on serving",
        model=model,
    )
