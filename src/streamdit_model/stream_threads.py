"""The threads of a stream: denoising, decoding, prompts and input, with bounded work ahead.

The only place in the library that starts threads. A run makes chunks from a denoiser and a decoder,
either in the reader's thread or in threads of its own; both make the same frames.

Paper: section 8 and Fig. 11.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue

import torch
from torch import Tensor

from streamdit_model.prompt_keys import TextWork, encode_now
from streamdit_model.stream_stages import Cut, Decoder, Denoiser, LatentChunk
from streamdit_model.transformer import TextKeys
from streamdit_model.video_chunk import VideoChunk

__all__ = ["InlineRun", "ThreadedRun"]


PIECES_AHEAD = 2  # pieces of an input asked for before they are needed
INPUT_SECONDS = 2.0  # waited for an input that gives nothing when a stream is closed


class _Stopped(BaseException):
    """The stream was closed; raised inside the denoiser and never seen outside."""


class InlineRun:
    """All stages in the reader's thread."""

    prompts_ahead = 0  # nothing is gained by encoding early in the same thread

    def submit(self, work: TextWork) -> Future[TextKeys]:
        """Encode a prompt now."""
        return encode_now(work)

    def feed(self, source: Iterable[Tensor]) -> Iterator[Tensor]:
        """Return the pieces of an input, each taken when it is asked for."""
        return iter(source)

    def check(self) -> None:
        """Nothing can stop the reader's own thread."""

    def begin(self, denoiser: Denoiser, decoder: Decoder, num_chunks: int | None) -> None:
        """Take the stages and the number of chunks to make."""
        self._denoiser, self._decoder, self._left = denoiser, decoder, num_chunks

    @torch.inference_mode()
    def next(self) -> tuple[VideoChunk, Cut] | None:
        """Make the next chunk; None at the end."""
        if self._left == 0:
            return None
        if self._left is not None:
            self._left -= 1
        made = self._denoiser.next()
        return None if made is None else self._decoder.next(made)

    def stop(self) -> None:
        """Nothing runs by itself."""


class ThreadedRun:
    """Each stage in a thread of its own, at most `chunks_ahead` chunks before the reader."""

    prompts_ahead = 2

    def __init__(self, device: torch.device, chunks_ahead: int) -> None:
        self._device = device
        self._num_threads = torch.get_num_threads()
        self._room = threading.Semaphore(chunks_ahead)
        self._stopping = threading.Event()
        self._latents: SimpleQueue[LatentChunk | BaseException | None] = SimpleQueue()
        self._video: SimpleQueue[tuple[VideoChunk, Cut] | BaseException | None] = SimpleQueue()
        self._text = ThreadPoolExecutor(1, "streamdit-text", self._use_threads)
        self._threads: list[threading.Thread] = []
        self._input: threading.Thread | None = None
        self._pieces: SimpleQueue[Tensor | BaseException | None] = SimpleQueue()
        self._piece_room = threading.Semaphore(PIECES_AHEAD)

    def submit(self, work: TextWork) -> Future[TextKeys]:
        """Encode a prompt in the text thread."""
        return self._text.submit(work)

    def feed(self, source: Iterable[Tensor]) -> Iterator[Tensor]:
        """Return the pieces of an input, which a thread takes a little ahead.

        So an input that keeps the stream waiting, such as a pipe, does not keep it from closing.
        """
        self._input = threading.Thread(
            target=self._read, args=(source,), name="streamdit-input", daemon=True
        )
        return self._arriving()

    def check(self) -> None:
        """End the denoiser between two micro steps when the stream is closed."""
        if self._stopping.is_set():
            raise _Stopped

    def begin(self, denoiser: Denoiser, decoder: Decoder, num_chunks: int | None) -> None:
        """Take the stages and the number of chunks to make; threads start with the reader."""
        work = {"denoise": (self._denoise, denoiser, num_chunks), "decode": (self._decode, decoder)}
        self._threads = [
            threading.Thread(target=run, args=args, name=f"streamdit-{name}", daemon=True)
            for name, (run, *args) in work.items()
        ]

    def next(self) -> tuple[VideoChunk, Cut] | None:
        """Return the next chunk when it is made; None at the end."""
        for thread in self._all_threads():
            if thread.ident is None:
                thread.start()
        made = self._video.get()
        if isinstance(made, BaseException):
            raise made
        self._room.release()
        return made

    def stop(self) -> None:
        """End all threads and wait for them; at most one call of the network is waited for.

        An input that gives nothing is left waiting: its thread ends with what it gives next.
        """
        self._stopping.set()
        self._room.release()
        self._piece_room.release()
        self._pieces.put(None)
        self._latents.put(None)
        self._video.put(None)
        self._text.shutdown(wait=False, cancel_futures=True)
        for thread in self._all_threads():
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(INPUT_SECONDS if thread is self._input else None)

    def _all_threads(self) -> list[threading.Thread]:
        return self._threads if self._input is None else [*self._threads, self._input]

    def _read(self, source: Iterable[Tensor]) -> None:
        try:
            pieces = iter(source)
            while True:
                self._piece_room.acquire()
                if self._stopping.is_set():
                    return
                piece = next(pieces, None)
                self._pieces.put(piece)
                if piece is None:
                    return
        except BaseException as error:  # raised where the piece is missed
            self._pieces.put(error)

    def _arriving(self) -> Iterator[Tensor]:
        while (piece := self._pieces.get()) is not None:
            self.check()
            if isinstance(piece, BaseException):
                raise piece
            self._piece_room.release()
            yield piece
        self.check()

    @torch.inference_mode()
    def _denoise(self, denoiser: Denoiser, num_chunks: int | None) -> None:
        try:
            self._use_threads()
            made = 0
            while num_chunks is None or made < num_chunks:
                self._room.acquire()
                self.check()
                latents = denoiser.next()
                if latents is None:
                    break
                self._latents.put(latents)
                made += 1
            self._latents.put(None)
        except BaseException as error:  # every error goes on to the reader, who closes the stream
            self._latents.put(error)

    @torch.inference_mode()
    def _decode(self, decoder: Decoder) -> None:
        try:
            self._use_threads()
            with _side_stream(self._device):
                while isinstance(made := self._latents.get(), LatentChunk):
                    self.check()
                    self._video.put(decoder.next(made))
            self._video.put(made)
        except BaseException as error:  # every error goes on to the reader, who closes the stream
            self._video.put(error)

    def _use_threads(self) -> None:
        """Compute with as many threads as the reader's thread would, for equal bits."""
        torch.set_num_threads(self._num_threads)


def _side_stream(device: torch.device) -> AbstractContextManager[object]:
    """Return a queue of its own on a GPU, so that decoding runs beside denoising."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))
