"""A run's page on the loopback address, for a browser that shows each new one; nothing else is served."""

import base64
import hashlib
import os
import stat
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from datadistill.report.page import PAGE_NAME

_LOOPBACK = "127.0.0.1"
_STYLE = """:root { color-scheme: light dark; }
html, body, iframe { display: block; width: 100%; height: 100%; margin: 0; border: 0; }
iframe.next { position: fixed; visibility: hidden; }"""
_SCRIPT = """
let stamp = "", shown = null, coming = false;
function arrive(next) {
  next.contentWindow.scrollTo(0, shown ? shown.contentWindow.scrollY : 0);
  if (shown) shown.remove();
  next.className = "";
  shown = next;
  coming = false;
}
async function look() {
  if (coming || (shown && shown.contentDocument.querySelector("dialog[open]"))) return;
  const now = await (await fetch("/stamp", {cache: "no-store"})).text();
  if (now === stamp) return;
  stamp = now;
  coming = true;
  const next = document.createElement("iframe");
  next.className = "next";
  next.title = "the run";
  next.src = "/report.html";
  next.onload = () => setTimeout(() => arrive(next), 200);
  document.body.append(next);
}
setInterval(() => look().catch(() => {}), 1000);
look();
"""
_FRAME = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>datadistill watch</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{_STYLE}</style><body><script>{_SCRIPT}</script></body></html>"""
_WAITING = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<title>datadistill watch</title><p>There is no page yet: a run writes it at its first validation, and
<code>datadistill report</code> at any time.</p></html>"""


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; frame-src 'self'; connect-src 'self'; img-src data:; style-src {_hashed(_STYLE)}; "
    f"script-src {_hashed(_SCRIPT)}; frame-ancestors 'none'"
)


class Watch(ThreadingHTTPServer):
    """A server of one folder's page.

    Attributes:
        page: the file.
        address: for a browser.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.page = folder.resolve() / PAGE_NAME
        super().__init__((_LOOPBACK, port), _Handler)
        self.address = f"http://{_LOOPBACK}:{self.server_address[1]}/"

    def read(self) -> tuple[bytes, str]:
        """The page and a stamp that a new one changes; nothing of a link or of what is no file."""
        try:
            if self.page.is_symlink():
                return b"", ""
            handle = os.open(self.page, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            with os.fdopen(handle, "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    return b"", ""
                return file.read(), f"{found.st_mtime_ns}-{found.st_ino}"
        except OSError:
            return b"", ""


class _Handler(BaseHTTPRequestHandler):
    server: Watch
    timeout = 30

    def do_GET(self) -> None:
        # A name that somebody made to lead here is not ours: another site's script would read with it.
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (_LOOPBACK, "localhost"):
            return self._send(HTTPStatus.FORBIDDEN, b"")
        page, stamp = self.server.read()
        if self.path == "/":
            return self._send(HTTPStatus.OK, _FRAME.encode(), policy=_POLICY)
        if self.path == "/stamp":
            return self._send(HTTPStatus.OK, stamp.encode(), "text/plain")
        if self.path == f"/{PAGE_NAME}":
            return self._send(HTTPStatus.OK, page or _WAITING.encode(), policy="frame-ancestors 'self'")
        return self._send(HTTPStatus.NOT_FOUND, b"")

    def _send(
        self, status: HTTPStatus, body: bytes, kind: str = "text/html", policy: str = "default-src 'none'"
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
        }
        headers |= {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
        for name, value in {**headers, "Content-Security-Policy": policy}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass
