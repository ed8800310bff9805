"""A proxy on the loopback in front of a test server: it drops connections, stalls, and answers 503, by a seed."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nContent-Length: 52\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>x</Message></Error>"[:52]
)


class Proxy:
    """Each connection is dropped, stalled, answered 503, cut in the middle of its answer, or passed on."""

    def __init__(self, target: tuple[str, int], rates: Mapping[str, float], seed: int, stall_s: float) -> None:
        self.target, self.rates, self.random, self.stall_s = target, dict(rates), random.Random(seed), stall_s
        self.counts: Counter[str] = Counter()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                client, _ = self.listener.accept()
                point, kind = self.random.random(), "pass"
                for name, rate in self.rates.items():
                    point -= rate
                    if point < 0:
                        kind = name
                        break
                self.counts[kind] += 1
                threading.Thread(target=self._serve, args=(client, kind), daemon=True).start()

    def _serve(self, client: socket.socket, kind: str) -> None:
        with contextlib.suppress(OSError), client:
            if kind == "drop":
                return
            if kind == "503":
                client.recv(65536)
                client.sendall(BUSY)
                return
            if kind == "stall":
                time.sleep(self.stall_s)
                return
            with socket.create_connection(self.target) as server:
                threading.Thread(target=_pump, args=(client, server, False), daemon=True).start()
                _pump(server, client, kind == "cut")


def _pump(source: socket.socket, sink: socket.socket, cut: bool) -> None:
    """Pass everything on, or only the first half of a body (of what is short: nothing)."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data[: len(data) // 2 if len(data) > 4096 else 0] if cut else data)
            if cut:
                break
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def faulty_proxy(
    uri: str, rates: Mapping[str, float], seed: int = 0, stall_s: float = 3.0
) -> Iterator[tuple[str, Proxy]]:
    """The same bucket through the proxy."""
    host, _, rest = uri.partition("endpoint_override=")[2].partition(":")
    port = int(rest.partition("&")[0])
    proxy = Proxy((host, port), rates, seed, stall_s)
    try:
        yield uri.replace(f"{host}:{port}", f"127.0.0.1:{proxy.port}"), proxy
    finally:
        proxy.listener.close()
