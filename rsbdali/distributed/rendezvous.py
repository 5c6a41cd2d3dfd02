"""A store of its own for every start of the ranks under torchrun.

Ranks find each other by what they leave in a key-value store. Torchrun's lives as long as torchrun, restarts included,
and torch 2.14 reads from it what ranks of the start before have left: addresses of processes that are gone, to which
the new ones then connect (two gloo ranks: 4 of 4 restarts failed so, on a busy machine some hung; 4 of 4 go on by what
is here). So rank 0 picks a name for this start, and all keys begin with it. It travels by keys that only this start can
know:

    rank r   hello/r = nonce ─────────────> rank 0    a hello of the start before is answered too, unread
    rank r   <───────── answer/nonce = name           never stale: the nonce is new
    rank r   ack/name/r ──────────────────> rank 0    which ends when it has all of them
"""

import os
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

POLL_S = 0.02
Store = Any  # of torch.distributed, which mypy does not see


def agent_store(env: Mapping[str, str], timeout: timedelta) -> Store | None:
    """Torchrun's own store; None where there is none, and rank 0 keeps the store of one start."""
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    return TCPStore(*address, is_master=False, timeout=timeout, wait_for_workers=False)


def of_this_start(store: Store, rank: int, size: int, timeout: timedelta) -> Store:
    """The part of a store that the ranks of this start share, and no other start.

    Args:
        store: that outlives the ranks.
        rank: of this process.
        size: number of ranks.
        timeout: for all of them to come.

    Raises:
        dist.DistError: not all came in time.
    """
    nonce = f"{os.getpid()}-{uuid.uuid4()}"
    if rank == 0:
        name = nonce
        _answer(store, name, size, time.monotonic() + timeout.total_seconds())
    else:
        store.set(f"hello/{rank}", nonce)
        name = store.get(f"answer/{nonce}").decode()
        store.set(f"ack/{name}/{rank}", "")
    return PrefixStore(name, store)


def _answer(store: Store, name: str, size: int, deadline: float) -> None:
    """Tell every rank the name of this start, until each has heard it."""
    missing = set(range(1, size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"ack/{name}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"hello/{rank}"]):
                store.set(f"answer/{store.get(f'hello/{rank}').decode()}", name)
        if missing and time.monotonic() > deadline:
            raise dist.DistNetworkError(f"ranks {sorted(missing)} did not come")
        time.sleep(POLL_S)
