"""The first thing an engine process does: load a model and build its engine.

Light to import, and without Redis or settings: until it has imported torch, the process that waits
for it can serve nobody.
"""

import gc
import os

from pagestream.producer.logs import log_to_stderr

from .config import EngineConfig
from .loading import LoadingBar
from .process import EngineLike


def build_real_engine(config: EngineConfig) -> EngineLike:
    """Load the model and build its engine; called in the engine process."""
    log_to_stderr()
    # What is imported and loaded stays: looking for garbage among it takes a fifth of the time.
    gc.disable()
    from .engine.engine import build_engine

    _leave_a_core()
    engine = build_engine(config, LoadingBar())
    gc.enable()
    return engine


def _leave_a_core() -> None:
    """Keep torch off one core, for this worker's other process and Redis.

    OpenMP's threads wait for each other after every operation: one that has to share its core holds
    up all of them (measured: an operation of 2 ms then takes 8 to 130). OMP_NUM_THREADS overrules.
    """
    import torch

    threads = torch.get_num_threads()
    # With two cores the second one is worth more to the model, as long as nobody else wants it.
    if "OMP_NUM_THREADS" not in os.environ and threads > 2:
        torch.set_num_threads(threads - 1)
