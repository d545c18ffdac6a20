"""Decoding of compressed DICOM in another process: GDCM, a C++ library, aborts the process on some damaged files.

One process per process that reads images, started at its first compressed file. It gets paths and answers with pixels.
This file imports nothing of `mrg`, because it is also the program of that process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import IO

import numpy as np

SECONDS = 60.0
"""Time limit for one image; a large one takes less than a second."""
_LENGTH = struct.Struct("<Q")


class DecoderCrashError(RuntimeError):
    """The decoder ended, or did not answer in time."""


class Decoder:
    """A process that decodes; it ends when this one does."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def decode(self, path: Path) -> np.ndarray:
        """Return the pixels of a DICOM file as `pydicom.pixels.pixel_array` does.

        Raises:
            DecoderCrashError: If the process ends without an answer, or needs longer than `SECONDS`.
            ValueError: If the file cannot be decoded; the message is that of the decoder.
        """
        with self.lock:
            timer = threading.Timer(SECONDS, self.process.kill)
            timer.start()
            try:
                assert self.process.stdin is not None
                assert self.process.stdout is not None
                _send(self.process.stdin, os.fsencode(path.absolute()))
                head = json.loads(_receive(self.process.stdout))
                if isinstance(head, str):
                    raise ValueError(head)
                return np.frombuffer(bytearray(_receive(self.process.stdout)), head["dtype"]).reshape(head["shape"])
            except (OSError, EOFError):
                self.process.kill()
                code = self.process.wait()
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                raise DecoderCrashError(f"its decoder crashed or took over {SECONDS:.0f} s, {how}") from None
            finally:
                timer.cancel()


_decoder: Decoder | None = None


def decode(path: Path) -> np.ndarray:
    """Decode a DICOM file in the decoder of this process, which is started if there is none; see `Decoder.decode`."""
    global _decoder
    for last in (False, True):
        # A worker that was forked has inherited the decoder of its parent, which it must not use.
        if _decoder is None or _decoder.owner != os.getpid() or _decoder.process.poll() is not None:
            _decoder = Decoder()
        try:
            return _decoder.decode(path)
        except DecoderCrashError:  # perhaps for want of memory: a second process gets another try
            if last:
                raise
    raise AssertionError  # for type checkers: the line above does not return


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    def read(size: int) -> bytes:
        content = pipe.read(size)
        if len(content) < size:
            raise EOFError
        return content

    return read(_LENGTH.unpack(read(_LENGTH.size))[0])


def _serve() -> None:
    sys.path.pop(0)  # the folder of this file
    from pydicom import config, dcmread
    from pydicom.pixels import pixel_array

    for number in (signal.SIGINT, signal.SIGTERM):  # those are for the reader, whose end closes the pipe
        signal.signal(number, signal.SIG_IGN)
    # Libraries may print to standard output, which is the pipe.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    with contextlib.suppress(EOFError), config.disable_value_validation():
        while True:
            path = os.fsdecode(_receive(sys.stdin.buffer))
            try:
                pixels = np.ascontiguousarray(pixel_array(dcmread(path, force=True)))
            except Exception as error:  # sent to the reader, which adds the path
                _send(pipe, json.dumps(" ".join(str(error).split()) or type(error).__name__).encode())
                continue
            _send(pipe, json.dumps({"shape": pixels.shape, "dtype": pixels.dtype.str}).encode())
            _send(pipe, pixels.tobytes())


if __name__ == "__main__":
    _serve()
