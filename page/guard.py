"""The wall around the page: who may ask, from where, and what a browser may do with the answer.

Loopback is no wall against a web page in the same browser, which may send requests to any address.
So a request must name this machine as its host (a foreign name that points here does not), a
writing one must come from the page itself, and all but the empty page needs the token of this
start, which no other page can know. The policy lets the browser load nothing from elsewhere.
"""

import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; media-src 'self'; frame-src 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'"
)
# A report is a page of its own, with a policy in its head; here it becomes one without an origin.
REPORT_POLICY = "sandbox allow-scripts; frame-ancestors 'self'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
READING = ("GET", "HEAD")
# Without the token: the page before it holds anything, and addresses that are secrets themselves.
OPEN = ("/", "/api/login")
OPEN_FOLDERS = ("/static/", "/ticket/")


class Guard:
    """Lets a request through to `app` or answers why not; adds the headers to every answer.

    Args:
        token: the secret of this start.
        port: that is listened on; None takes any, as behind a test.
        remote: whether machines beside this one may ask, by address or by this one's name.
    """

    def __init__(self, app: ASGIApp, token: str, port: int | None, remote: bool):
        self.app, self.port = app, port
        self._token = token.encode()
        self._names = {"localhost", "127.0.0.1", "::1"}
        self._remote = remote
        if remote:
            name = socket.gethostname().lower()
            self._names |= {name, f"{name}.local", socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send_guarded)
        else:
            status, sentence = refusal
            answer = JSONResponse({"error": sentence}, status, {"connection": "close"})
            await answer(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the sentence for a request that is not let through."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_here(host):
            return 421, "This server answers to its own address only; open the one it printed."
        origin = headers.get("origin")
        if scope["method"] not in READING:
            own = {f"http://{host}", f"https://{host}"}
            site = headers.get("sec-fetch-site", "same-origin")
            if (origin is not None and origin not in own) or site not in ("same-origin", "none"):
                return 403, "Only the page itself may change anything."
        if path in OPEN or path.startswith(OPEN_FOLDERS):
            return None
        given = headers.get("x-token", "").encode()
        if not hmac.compare_digest(given, self._token):
            return 401, "This window belongs to an earlier start; open the address of this one."
        return None

    def _is_here(self, host: str) -> bool:
        """Whether a Host header names this machine, and the port that is listened on."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").rstrip("."), parts.port or 80
        except ValueError:
            return False
        if parts.netloc != host or "@" in host or (self.port is not None and port != self.port):
            return False
        # A page of another name that was made to point here still sends its own name; addresses
        # in numbers cannot be made to point elsewhere.
        return name in self._names or (self._remote and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
