"""The signals that end a run: the first one asks, the second one hurries, the third one kills.

SIGINT, SIGTERM and SIGHUP take the same way out. A signal that the process was started to ignore
(`nohup`, a background job of a shell) stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from streamdit_cli.errors import Stopped

__all__ = ["Signals"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Signals:
    """A context in which signals are taken; the handlers of before are put back at its end.

    Until `be_patient` is called there is nothing to finish, and the first signal raises `Stopped`.

    Attributes:
        received: number of the first signal, None before it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._on_first: Callable[[], None] | None = None
        self._on_second: Callable[[], None] | None = None
        self._count = 0
        self._before: dict[int, object] = {}

    @property
    def name(self) -> str:
        """Name of the signal that came, e.g. SIGINT; empty before it."""
        return "" if self.received is None else signal.Signals(self.received).name

    def be_patient(
        self, on_first: Callable[[], None], on_second: Callable[[], None] | None = None
    ) -> None:
        """From now on the first signal only calls `on_first` and sets `received`.

        The second one calls `on_second` and raises. Both are called in the middle of anything that
        the main thread does, so they take no lock that it may hold.
        """
        self._on_first, self._on_second = on_first, on_second

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            numbers = (getattr(signal, name, None) for name in _NAMES)
            for number in (number for number in numbers if number is not None):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self.received = self.received or number
        if self._count == 1 and self._on_first is not None:
            self._on_first()
        elif self._count <= 2:
            if self._on_second is not None:
                self._on_second()
            raise Stopped(self.received, "")
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
