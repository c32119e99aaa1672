"""Fresh processes that need not import torch again: they are forked from a server that has.

The server itself runs no test, so that none of a test's threads and settings are inherited.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["nestedseg.cli", "accelerate", "torchvision", "pytest"])


def start(work: Callable[..., Any], *arguments: Any, output: Path, **environment: str) -> Any:
    """A started process which calls ``work``, and prints into the file ``output``."""
    process = SERVER.Process(target=_call, args=(work, arguments, output, environment))
    process.start()
    return process


def in_two_processes(work: Callable[..., Any], *arguments: Any, output: Path) -> str:
    """What two processes print which call ``work`` as `torchrun` would run them, on CPUs."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2",
              "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True",
              "ACCELERATE_USE_CPU": "true"}
    outputs = [output.with_suffix(f".{rank}") for rank in range(2)]
    processes = [start(work, *arguments, output=outputs[rank], RANK=str(rank),
                       LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    for process in processes:
        process.join(timeout=120)
        process.kill()  # does nothing to one that has ended
    assert [process.exitcode for process in processes] == [0, 0]
    return "".join(path.read_text() for path in outputs)


def _call(work: Callable[..., Any], arguments: tuple, output: Path,
          environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open(output, "w", buffering=1) as sys.stdout:  # line by line, for those who wait for one
        sys.exit(work(*arguments))
