"""The few exceptions a caller of the library can catch.

Every message is one line: what is wrong with which value, then what is allowed. `hint` is what the
user can type or change next; the library never prints it.
"""

__all__ = ["ConfigError", "DeviceError", "NumericsError", "StreamDiTError", "WeightsError"]


class StreamDiTError(Exception):
    """Base of all errors that the library raises on purpose.

    Args:
        message: one line, what is wrong and what is allowed.
        hint: one line, what to type or change next; empty when there is nothing to add.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(StreamDiTError, ValueError):
    """A number or a combination in a configuration that cannot work."""


class WeightsError(StreamDiTError):
    """Weights or a checkpoint that are missing, damaged, or not what the configuration says."""


class DeviceError(StreamDiTError):
    """The device is missing or has too little memory."""


class NumericsError(StreamDiTError):
    """A value that is not finite, in a stream or in training."""
