"""Decoding of compressed DICOM in a process of its own."""

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.images import decoder, dicom
from mrg.datamodules.images.read import read_image

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("gdcm", reason="needs the extra dicom")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

NAMES = ("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPEG2000.dcm")


def bundled(name: str) -> Path:
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this release of pydicom does not bring {name}")
    return Path(path)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_pydicom(name: str) -> None:
    expected = pydicom.pixels.pixel_array(pydicom.dcmread(bundled(name)))
    pixels = decoder.decode(bundled(name))
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)
    pixels[:] = 0  # a copy that may be written


def test_one_process_decodes_all_files() -> None:
    decoder.decode(bundled(NAMES[0]))
    process = decoder._decoder.process
    decoder.decode(bundled(NAMES[1]))
    assert decoder._decoder.process is process
    process.kill()
    process.wait()
    decoder.decode(bundled(NAMES[1]))  # in a new one


def test_a_worker_that_was_forked_starts_its_own() -> None:
    decoder.decode(bundled(NAMES[0]))
    expected = decoder._decoder.process.pid
    child = os.fork()
    if not child:
        code = 1
        try:
            pixels = decoder.decode(bundled(NAMES[0]))
            code = 0 if pixels.shape == (64, 64) and decoder._decoder.process.pid != expected else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert decoder.decode(bundled(NAMES[0])).shape == (64, 64)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_decoder_that_crashes_is_an_error_of_its_image(tmp_path: Path, monkeypatch, number: int) -> None:
    """As GDCM does for damaged files; here while the decoder waits for the content of a pipe."""
    started, start = threading.Semaphore(0), decoder.Decoder.__init__

    def recorded(self) -> None:
        start(self)
        started.release()

    monkeypatch.setattr(decoder, "_decoder", None)
    monkeypatch.setattr(decoder.Decoder, "__init__", recorded)
    pipe = tmp_path / "damaged.dcm"
    os.mkfifo(pipe)
    killed = []

    def kill() -> None:
        for _ in range(2):  # another process gets a second try
            started.acquire()
            while decoder._decoder is None or decoder._decoder.process.pid in killed:
                pass
            with pipe.open("wb"):  # returns when the decoder has opened the other end
                killed.append(decoder._decoder.process.pid)
                os.kill(killed[-1], number)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(decoder.DecoderCrashError, match=f"its decoder crashed .*{signal.Signals(number).name}"):
        decoder.decode(pipe)
    thread.join()
    assert len(set(killed)) == 2
    assert decoder.decode(bundled(NAMES[0])).shape == (64, 64)


def test_a_decoder_that_never_answers_is_killed(tmp_path: Path, monkeypatch) -> None:
    pipe = tmp_path / "endless.dcm"
    os.mkfifo(pipe)
    monkeypatch.setattr(decoder, "SECONDS", 0.3)
    with pytest.raises(decoder.DecoderCrashError, match="SIGKILL"):
        decoder.decode(pipe)


def test_the_message_of_a_crash_names_the_image(monkeypatch) -> None:
    def crash(path: Path) -> None:
        raise decoder.DecoderCrashError("its decoder crashed, SIGABRT")

    monkeypatch.setattr(dicom, "decode", crash)
    with pytest.raises(ImageReadError) as error:
        read_image(bundled(NAMES[0]))
    assert str(error.value) == (
        f"Image {bundled(NAMES[0])} is DICOM that cannot be read (its decoder crashed, SIGABRT); copy it again."
    )


def test_damaged_files_end_neither_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [np.frombuffer(bundled(name).read_bytes(), dtype=np.uint8) for name in NAMES]
    file, messages = tmp_path / "a.dcm", []
    for number in range(60):
        damaged = contents[number % len(contents)].copy()
        places = rng.integers(len(damaged) // 3, len(damaged), 20)
        damaged[places] = rng.integers(0, 256, 20)
        file.write_bytes(damaged.tobytes())
        try:
            assert read_image(file).mode in ("L", "RGB")
        except ImageReadError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all("a.dcm" in message and "\n" not in message for message in messages)
