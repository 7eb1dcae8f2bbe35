"""Errors as {code, message, where, fix}; PaddleX's paths have a form of their own."""

from __future__ import annotations

import uuid

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from paddlex_feat.errors import FeatError, GalleryError

NO_SNIFFING = ("X-Content-Type-Options", "nosniff")
PADDLEX_PATHS = ("/shitu-index-build", "/shitu-index-add", "/shitu-index-remove", "/shitu-infer")
_STATUS = {
    **dict.fromkeys(("gallery-file", "gallery-missing", "gallery-server", "model-exchange"), 503),  # our own trouble
    **dict.fromkeys(("item-data", "item-text"), 422),
}


def explain(app: FastAPI) -> None:
    """Answer what is raised with an error in its path's form."""

    @app.exception_handler(FeatError)
    def ours(request: Request, error: FeatError) -> Response:
        status = 422 if error.code.endswith("-invalid") else _STATUS.get(error.code, 0)
        status = status or (409 if isinstance(error, GalleryError) else 400)
        return failure(request.url.path, status, error.code, error.what, error.where, error.fix)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first.get("loc", ())))
        return failure(request.url.path, 422, "request-invalid", str(first.get("msg")), where)

    @app.exception_handler(Exception)
    def fault(request: Request, error: Exception) -> Response:
        """A fault of this program, whose traceback is logged after this."""
        answer = failure(request.url.path, 500, "unexpected", "The service has failed; its log has the reason.")
        answer.headers[NO_SNIFFING[0]] = NO_SNIFFING[1]  # this answer does not pass the guard
        return answer

    @app.exception_handler(HTTPException)
    def others(request: Request, error: HTTPException) -> Response:
        answer = failure(request.url.path, error.status_code, "request-refused", str(error.detail))
        answer.headers.update(error.headers or {})
        return answer


def failure(
    path: str, status: int, code: str, message: str, where: str | None = None, fix: str | None = None
) -> Response:
    """An error in the form of the path that was asked."""
    if path in PADDLEX_PATHS:
        text = "\n".join(filter(None, (message, where, fix)))
        return JSONResponse({"logId": uuid.uuid4().hex, "errorCode": status, "errorMsg": text}, status)
    return JSONResponse({"code": code, "message": message, "where": where, "fix": fix}, status)
