"""Ctrl-C and SIGTERM while training: finish the step, save, leave. A second Ctrl-C leaves at once."""

from __future__ import annotations

import signal
import sys
import threading


class Interrupt:
    """Context manager; ``asked`` becomes true when the user wants to stop."""

    def __init__(self):
        self.asked = False
        self._signal = signal.SIGINT
        self._held: dict = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._held[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._held.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt("at once; the last checkpoint stands")
        self.asked, self._signal = True, number
        print("\nstopping after this step (again: at once) ...", file=sys.stderr, flush=True)

    def leave(self, message: str) -> None:
        """Raise what ends the command: 130 for Ctrl-C, 143 for SIGTERM."""
        if self._signal == signal.SIGTERM:
            print(f"stopped: {message}", file=sys.stderr)
            raise SystemExit(143)
        raise KeyboardInterrupt(message)
