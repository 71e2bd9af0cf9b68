"""Who may ask: a browser on this machine that has the printed link, from pages of ours alone. Around all routes, so
that none can forget it.

A page of somebody else's can make a browser ask anything of 127.0.0.1; another user of the machine can ask without a
browser. Against the first stand Host (a name that was made to point here), Origin and the cookie's SameSite; against
the second the link's token, which is good for one browser.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, browsers hide the Origin of our own forms, too
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_SAFE = ("GET", "HEAD")


class Session:
    """The secrets of one run of the server.

    Args:
        port: that it listens on.
        show: called with each new link, for the person at the terminal.
    """

    def __init__(self, port: int, show: Callable[[str], None]):
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self.cookie = f"goodnet-{port}"  # cookies know no ports: two servers would take each other's away
        self.secret = secrets.token_urlsafe(32)
        self.csrf = hmac.new(self.secret.encode(), b"csrf", hashlib.sha256).hexdigest()
        self._show = show
        self._token = ""

    def new_link(self) -> None:
        """Shows a link, unless one that was not used yet has been shown."""
        if not self._token:
            self._token = secrets.token_urlsafe(32)
            self._show(f"http://{self.hosts[0]}/?token={self._token}")

    def spend(self, token: str) -> bool:
        """Whether this is the token of the last link; it is good once."""
        good = bool(self._token) and hmac.compare_digest(token.encode(), self._token.encode())
        if good:
            self._token = ""
        return good

    def knows(self, headers: Headers) -> bool:
        """Whether a request carries the cookie that the token was exchanged for."""
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        given = cookies[self.cookie].value if self.cookie in cookies else ""
        return hmac.compare_digest(given.encode(), self.secret.encode())

    def own(self, headers: Headers) -> bool:
        """Whether one of our own pages sends this."""
        site = headers.get("sec-fetch-site", "same-origin")
        return headers.get("origin", "") == f"http://{headers.get('host', '')}" and site == "same-origin"

    def allows(self, csrf: str) -> bool:
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


class Guarded:
    """The application behind the checks; adds the headers to whatever answers."""

    def __init__(self, app: ASGIApp, session: Session):
        self.app, self.session = app, session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no WebSocket here: it is closed
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope) or self._entry(scope)
        await (answer or self.app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.getlist("host") not in ([host] for host in self.session.hosts):
            return _page(403, "Not here", f"This page answers at http://{self.session.hosts[0]} alone.")
        if scope["method"] not in (*_SAFE, "POST"):
            return _page(405, "Not allowed", "This page knows GET and POST.")
        if scope["method"] == "POST" and not self.session.own(headers):
            return _page(403, "Refused", "This was sent by a page that is not goodnet's.")
        return None

    def _entry(self, scope: Scope) -> Response | None:
        """Exchanges the link's token for the cookie; None where the browser has it."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token") if scope["path"] == "/" else None
        if given and self.session.spend(given[0]):
            # a page that goes on by itself, no redirect: after a link on a page of another site, a browser
            # would not send a strict cookie with it
            answer = _page(200, "goodnet", "One moment …", onward="/")
            answer.set_cookie(self.session.cookie, self.session.secret, httponly=True, samesite="strict", path="/")
            return answer
        if self.session.knows(Headers(scope=scope)):
            return _page(200, "goodnet", "One moment …", onward="/") if given else None
        self.session.new_link()
        text = (
            "This browser has no access yet. Open the link that goodnet has printed last in the terminal where it runs."
        )
        return _page(403, "No access", f"{text} Each link is good for one browser.")


def _page(status: int, title: str, text: str, *, onward: str = "") -> HTMLResponse:
    refresh = f'<meta http-equiv="refresh" content="0; url={onward}">' if onward else ""
    link = f'<p><a href="{onward}">Go on</a></p>' if onward else ""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}<title>{html.escape(title)}</title>'
        '<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"></head><body><main><h1>{html.escape(title)}</h1>'
        f"<p>{html.escape(text)}</p>{link}</main></body></html>",
        status_code=status,
    )
