"""The server of the review page, for browsers on this machine."""

from __future__ import annotations

import ipaddress
import json
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pipeline.errors import BadInput
from pipeline.review.journal import TABLE, Shown, write_verdicts
from pipeline.review.session import Given, Review, Unknown

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise BadInput(
        f"review: the page needs the package {error.name}, which is not installed; run `pip install 'segpref[review]'`"
    ) from error

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/review.css": ("review.css", "text/css"),
    "/review.js": ("review.js", "text/javascript"),
    "/drawing.js": ("drawing.js", "text/javascript"),
}
"""Files of the page by their address. No other file is served."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
KEY = "x-review-key"
"""Header with the key of this start, which the page reads from its address."""
LARGEST = 4096
"""Bytes of the largest request."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def app_of(review: Review, key: str, names: Collection[str] | None = LOOPBACK) -> Starlette:
    """The application of a review. Requests for data need the header `KEY` with this key.

    `names` are the names of the server that requests may use in their header `Host`. None allows IP addresses and the
    name of the machine, for a server that listens to the network.
    """

    async def guard(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refusal(request, key, names)
        response = refused or await following(request)
        response.headers.update(HEADERS)
        return response

    async def file(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return Response((PAGE / name).read_bytes(), media_type=kind)

    async def waiting(request: Request) -> Response:
        name = _text(request.query_params.get("reviewer"))
        found = await run_in_threadpool(review.waiting, name)
        progress = await run_in_threadpool(review.progress, name)
        return JSONResponse({"waiting": [_about(one) for one in found], "progress": progress})

    async def pair(request: Request) -> Response:
        name, showing = (_text(request.query_params.get(part)) for part in ("reviewer", "showing"))
        return JSONResponse(await run_in_threadpool(_pair, review, name, showing))

    async def slice_(request: Request) -> Response:
        name, showing, index = (_text(request.query_params.get(part)) for part in ("reviewer", "showing", "index"))
        view = await run_in_threadpool(review.view, name, showing)
        if not (index.isascii() and index.isdigit() and int(index) < len(view.image)):
            raise Unknown(index)
        at = int(index)
        content = view.image[at].astype("<u2").tobytes() + view.masks[at].tobytes()
        return Response(content, media_type="application/octet-stream")

    async def answer(request: Request) -> Response:
        sent = await _sent(request)
        given: Any = sent.get("answer")
        seconds = sent.get("seconds")
        if given not in get_args(Given) or isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise BadInput(f"answer: expected one of {get_args(Given)} and a number of seconds; reload the page")
        name = _text(sent.get("reviewer"))
        recorded = await run_in_threadpool(review.answer, name, _text(sent.get("showing")), given, float(seconds))
        return await _done(name, {"recorded": recorded})

    async def undo(request: Request) -> Response:
        sent = await _sent(request)
        name = _text(sent.get("reviewer"))
        await run_in_threadpool(review.undo, name, _text(sent.get("showing")))
        return await _done(name, {})

    async def _done(name: str, said: dict[str, Any]) -> Response:
        progress = await run_in_threadpool(review.progress, name)
        # The journal holds the answer. The table may be a little later than the confirmation.
        return JSONResponse({**said, "progress": progress}, background=BackgroundTask(_derive, review.folder))

    routes = [
        *(Route(path, file, methods=["GET"]) for path in FILES),
        Route("/api/waiting", waiting, methods=["POST"]),
        Route("/api/pair", pair, methods=["GET"]),
        Route("/api/slice", slice_, methods=["GET"]),
        Route("/api/answer", answer, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
    ]
    handlers: Any = {BadInput: _bad_input, Unknown: _unknown, OSError: _broken}
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(BaseHTTPMiddleware, guard)])


def _derive(folder: Path) -> None:
    """Write the table. The answers are in the journals, so a table that cannot be written now is written later."""
    try:
        write_verdicts(folder)
    except (BadInput, OSError) as error:
        print(f"review: {folder / TABLE} lacks the last answer: {error}", file=sys.stderr)


def _refusal(request: Request, key: str, names: Collection[str] | None) -> Response | None:
    """Answer to a request that is not from the page of this server; None for a request of the page."""
    host = request.headers.get("host", "")
    if not _known_name(_name_in(host), names):
        # Another name may be that of a foreign page, which its owner lets point to this machine.
        return JSONResponse({"error": "this server has another name; open the address that it printed"}, 421)
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if (origin is not None and origin != f"{request.url.scheme}://{host}") or site in ("cross-site", "same-site"):
        return JSONResponse({"error": "requests of other sites are refused"}, 403)
    length = request.headers.get("content-length", "0")
    if "transfer-encoding" in request.headers or not length.isdigit() or int(length) > LARGEST:
        return JSONResponse({"error": f"requests have at most {LARGEST} bytes"}, 413)
    if request.url.path in FILES:
        return None
    if not secrets.compare_digest(request.headers.get(KEY, "").encode(), key.encode()):
        return JSONResponse({"error": "the key is missing or old; open the address that the server printed"}, 403)
    return None


def _name_in(host: str) -> str:
    """Name in a header `Host`, without the port, which a tunnel may change."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _known_name(name: str, names: Collection[str] | None) -> bool:
    if names is not None:
        return name in names
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in (*LOOPBACK, socket.gethostname().lower(), socket.getfqdn().lower())
    return True


async def _sent(request: Request) -> dict[str, Any]:
    try:
        content = json.loads(await request.body())
    except ValueError as error:
        raise BadInput("the request is not JSON; reload the page") from error
    if not isinstance(content, dict):
        raise BadInput("the request is no JSON object; reload the page")
    return content


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadInput("the request lacks a name or a number; reload the page")
    return value


def _about(shown: Shown) -> dict[str, Any]:
    """What the page may know of a pair before its image is there. The judge's opinion and the draw stay hidden."""
    return {"showing": shown.showing, "case": shown.case_id, "again": shown.undone is not None}


def _pair(review: Review, name: str, showing: str) -> dict[str, Any]:
    view = review.view(name, showing)
    cases = review.data.cases
    return {
        "shape": [view.image.shape[0], *view.image.shape[2:]],
        "channels": cases.info["channel_names"],
        "classes": cases.class_names,
        "rgb": cases.rgb,
        "differ": view.differ,
        "first": view.first,
        "aspect": view.aspect,
        "scale": view.scale,
        "window": view.window,
        "edges": view.edges,
        "display": view.display,
    }


async def _bad_input(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _unknown(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "this pair is no longer shown"}, 409)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"not stored: {BadInput.of(error) or error}"}, 500)


def serve(review: Review, host: str, port: int, expose: bool, told: Callable[[str], None]) -> int:
    """Serve the page until Ctrl-C or SIGTERM. Return the number of verdicts in the table.

    `told` gets the address and what a user must know about it. Raises `BadInput` for a port that is taken, and for a
    host other than the loopback without `expose`.
    """
    inside = host in LOOPBACK
    if not inside and not expose:
        raise BadInput(
            f"--host {host}: other machines could open the page. The page has no accounts and no encryption: whoever "
            "has its address sees the images. Add --expose if that is meant, or use `ssh -L 8765:localhost:8765`"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose others") from error
    key = secrets.token_urlsafe(24)
    shown = f"[{host}]" if ":" in host else host
    told(f"open http://{shown}:{listening.getsockname()[1]}/#{key} in a browser; Ctrl-C ends the review")
    if not inside:
        told("whoever reads this address, or the network in between, can see the images and answer")
    app = app_of(review, key, LOOPBACK if inside else None)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3, lifespan="off")
    # uvicorn ends its work at SIGTERM and sends the signal again. The table is derived after that.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with listening, suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    return review.close()
