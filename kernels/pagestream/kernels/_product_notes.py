"""What was chosen for products on one kind of GPU, for the next start. Knows no tensors."""

import hashlib
import json
import logging
from pathlib import Path

from ._cublaslt import Algorithm, Shape

logger = logging.getLogger(__name__)


class Notes:
    """What was chosen on one kind of GPU with the same libraries, in a file of Triton's cache.

    A file that cannot be read or written costs the measuring, nothing else.
    """

    _FILE = "products.json"
    _FORMAT = 2

    def __init__(self, *identity: object) -> None:
        """`identity`: all that a choice depends on beside the shape."""
        from triton.runtime.cache import get_cache_manager

        key = repr(("pagestream products", self._FORMAT, *identity))
        self._store = get_cache_manager(hashlib.sha256(key.encode()).hexdigest())
        self._algorithms = self._read(self._store.get_file(self._FILE))
        self._changed = False

    def __contains__(self, shape: Shape) -> bool:
        return _name(shape) in self._algorithms

    def __getitem__(self, shape: Shape) -> Algorithm | None:
        noted = self._algorithms[_name(shape)]
        return None if noted is None else Algorithm.from_buffer_copy(bytes.fromhex(noted))

    def __setitem__(self, shape: Shape, algorithm: Algorithm | None) -> None:
        self._algorithms[_name(shape)] = None if algorithm is None else bytes(algorithm).hex()
        self._changed = True

    def keep(self) -> None:
        """Write what is new."""
        if not self._changed:
            return
        try:
            self._store.put(json.dumps(self._algorithms), self._FILE, binary=False)
        except OSError as error:
            logger.warning("the choice of products is not kept for the next start: %s", error)
        self._changed = False

    @staticmethod
    def _read(path: str | None) -> dict[str, str | None]:
        try:
            return json.loads(Path(path).read_text()) if path else {}
        except (OSError, ValueError) as error:
            logger.warning("products are measured anew, %s cannot be read: %s", path, error)
            return {}


def _name(shape: Shape) -> str:
    return f"{shape.rows} x {shape.inputs} x {shape.outputs} {shape.dtype}"
