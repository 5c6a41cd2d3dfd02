"""Streams and events that only keep a diary, so that the order of a GPU's work can be tested without one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

needs_no_driver = pytest.mark.skipif(
    torch.__version__ < "2.9" and not torch.cuda.is_available(),
    reason="this torch asks CUDA's driver about fake tensors too: it needs a GPU",
)


class FakeCuda:
    """Replaces `torch.cuda`'s streams and events; tensors stay on the CPU.

    Attributes:
        diary: (what, stream, event) in the order it happened; `wait for host` is what a loader must never do.
        passed: whether events say that they have passed.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.diary: list[tuple[str, str, int]] = []
        self.passed = False
        self._streams = ["model"]
        self._events = 0
        fake = self

        class Stream:
            def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
                self.name = f"side, priority {priority}"

            def wait_event(self, event: "Event") -> None:
                fake.diary.append(("wait", self.name, event.number))

            def synchronize(self) -> None:
                fake.diary.append(("wait for host", self.name, -1))

        class Event:
            def __init__(self, **_: Any) -> None:
                fake._events += 1
                self.number = fake._events

            def record(self, stream: Stream | None = None) -> None:
                fake.diary.append(("record", stream.name if stream else fake.current, self.number))

            def query(self) -> bool:
                return fake.passed

            def synchronize(self) -> None:
                fake.diary.append(("wait for host", "", self.number))

        @contextmanager
        def stream(chosen: Stream) -> Iterator[None]:
            self._streams.append(chosen.name)
            yield
            self._streams.pop()

        def current_stream(_: object = None) -> Stream:
            found = Stream()
            found.name = self.current
            return found

        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "device", lambda _: nullcontext())
        patch.setattr(torch.cuda, "current_stream", current_stream)
        patch.setattr(torch.cuda, "synchronize", lambda *_: self.note("wait for host"))
        patch.setattr(torch.Tensor, "record_stream", lambda _, stream: self.note(f"used on {stream.name}"))

    @property
    def current(self) -> str:
        """Name of the stream that work is launched on."""
        return self._streams[-1]

    def note(self, what: str) -> None:
        """Write into the diary."""
        self.diary.append((what, self.current, -1))


def allow_cuda_autocast(patch: pytest.MonkeyPatch) -> None:
    """Let autocast to 16 bits work for (fake) CUDA tensors where there is no GPU."""
    patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
