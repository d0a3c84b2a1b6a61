"""Page sizes, opaque cursors, and the Link header that carries them."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request

from scanner.hub.server.answers import HubError

_MAX_CURSOR_CHARS = 2000


@dataclass(frozen=True)
class Cursor:
    """Where a page ended: the last item's sort value and identity.

    The next page is "everything behind this point", not "skip N", so items that arrive in front of it while
    somebody pages shift nothing.
    """

    sort: str
    value: float | str
    uid: str

    def encode(self) -> str:
        text = json.dumps([self.sort, self.value, self.uid], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode()


def decode_cursor(text: str, sort: str) -> Cursor:
    try:
        if len(text) > _MAX_CURSOR_CHARS:
            raise ValueError("too long")
        raw = json.loads(base64.b64decode(text, altchars=b"-_", validate=True))
        found_sort, value, uid = raw
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise HubError(400, "Invalid cursor") from None
    is_value = isinstance(value, str | int | float) and not isinstance(value, bool)
    if found_sort != sort or not is_value or not isinstance(uid, str):
        raise HubError(400, "Invalid cursor")
    return Cursor(sort, value, uid)


def page_size(request: Request, default: int, maximum: int) -> int:
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) == 0:
        raise HubError(400, "limit must be a whole number above 0")
    return min(int(text), maximum)


def flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1")


def next_link(request: Request, **changes: str) -> dict[str, str]:
    """A Link header with the request's own address. It must be absolute: clients follow it to the letter."""
    kept = [(key, value) for key, value in request.query_params.multi_items() if key not in changes]
    url = request.url.replace(query=urlencode([*kept, *changes.items()]), fragment="")
    return {"Link": f'<{url}>; rel="next"'}
