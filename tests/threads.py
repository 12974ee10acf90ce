"""Threads in place of the processes that nnU-Net spawns, each of which costs seconds of imports."""

from __future__ import annotations

import multiprocessing
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import pytest

# Parts of the spawning context that stay as they are: prediction's reader is a process with a queue.
KEPT = ("Process", "Queue", "Event", "Manager")


def use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of threads where nnU-Net requests spawned processes.

    Not for all tests: only spawned processes show whether something survives pickling and a new process.
    """
    get_context = multiprocessing.get_context

    def with_threads(method: str | None = None) -> object:
        context = get_context(method)
        if method != "spawn":
            return context
        return SimpleNamespace(Pool=ThreadPool, **{name: getattr(context, name) for name in KEPT})

    monkeypatch.setattr(multiprocessing, "get_context", with_threads)
