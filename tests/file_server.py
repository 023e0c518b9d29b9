"""A web server of a folder on this machine, which knows ranges and can be made to fail."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Faults:
    """Draws a fault for so many requests, never so many in a row that no patience would do."""

    def __init__(self, seed=0, share=0.0, kinds=(), in_a_row=3, wrong=2):
        self.random, self.share, self.kinds = random.Random(seed), share, kinds
        self.in_a_row, self.wrong = in_a_row, wrong
        self.row, self.wrongs, self.counts = Counter(), Counter(), Counter()
        self.lock = threading.Lock()

    def draw(self, path, wanted):
        with self.lock:
            kind = self.random.choice(self.kinds) if self.random.random() < self.share else None
            if kind == "wrong" and (not path.endswith(".tar") or self.wrongs[path] >= self.wrong):
                kind = None
            if kind is None or self.row[path, wanted] >= self.in_a_row:
                self.row[path, wanted] = 0
                return None
            self.row[path, wanted] += kind != "wrong"
            self.wrongs[path] += kind == "wrong"
            self.counts[kind] += 1
            return kind


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    silence = 0.8  # seconds

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = Path(self.translate_path(self.path.split("?")[0]))
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        kind = self.server.faults.draw(self.path, self.headers.get("Range"))
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if kind == "500":
            return self.send_error(500)
        if path.is_dir():
            return super().do_GET() if body else super().do_HEAD()
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        self.send_part(data, path.stat(), kind, body)

    def send_part(self, data, status, kind, body):
        first, end = 0, len(data)
        if wanted := self.headers.get("Range"):
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, end = int(low), min(int(high) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        part = bytearray(data[first:end])
        if kind == "wrong" and part:
            part[len(part) // 2] ^= 0xFF
        if kind == "less" and wanted:  # than was asked for, and says so
            part = part[: len(part) // 2]
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{status.st_mtime_ns:x}"')
        self.end_headers()
        if not body:
            return
        if kind in ("short", "silent"):
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            if kind == "silent":
                time.sleep(self.silence)
            self.close_connection = True
            return
        if kind == "drip":  # slow, but it comes
            for place in range(0, len(part), max(1, len(part) // 4)):
                self.wfile.write(part[place : place + max(1, len(part) // 4)])
                self.wfile.flush()
                time.sleep(0.01)
            return
        self.wfile.write(part)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients go away


@contextmanager
def serving(folder, faults=None):
    """A server of a folder; its URL is `url`, what was asked of it `requests`."""
    server = Server(("127.0.0.1", 0), lambda *words: Handler(*words, directory=str(folder)))
    server.faults, server.requests = faults or Faults(), []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
