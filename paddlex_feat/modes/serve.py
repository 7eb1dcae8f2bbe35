"""Mode serve: a gallery and its model as an HTTP service, until a signal ends it."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError
from paddlex_feat.inference.engines.spec import require_package
from paddlex_feat.modes.index import place_of
from paddlex_feat.modes.predictor import check_names, predictor_of
from paddlex_feat.runtime.process import allow_many_files

log = logging.getLogger(__name__)
ENV_TOKEN = "PADDLEX_FEAT_TOKEN"  # noqa: S105 - the name of a variable
GRACE_SECONDS = 30  # for requests at work when a signal comes


def run(config: Config, output: Path) -> dict[str, Any]:
    """Serve; returns the content of serve_result.json once SIGINT or SIGTERM has ended it.

    Raises DependencyError without the extra `serve`, ConfigError for an address beyond this machine without a token.
    """
    check_names(config.Predict)
    for package in ("fastapi", "uvicorn"):
        require_package(package, "paddlex_feat[serve]")
    import uvicorn

    from paddlex_feat.serving.app import create_app
    from paddlex_feat.serving.connections import Protocol
    from paddlex_feat.serving.guard import Counts, Limits, is_loopback
    from paddlex_feat.serving.images import fetch_image
    from paddlex_feat.serving.state import State

    settings, token = config.Serve, os.environ.get(ENV_TOKEN) or None
    if token is None and not is_loopback(settings.host):
        raise ConfigError(
            f"The address {settings.host} can be reached from other machines, and no token is set.",
            where="Serve.host",
            fix=f"Set the environment variable {ENV_TOKEN} to a secret text, or serve on 127.0.0.1.",
            code="serve-without-token",
        )
    state = State(place_of(config, output), partial(predictor_of, config))
    try:
        limits, counts = Limits(token, settings.max_body_mib * 2**20, settings.max_requests), Counts()
        fetch = partial(fetch_image, max_bytes=limits.max_body) if settings.allow_urls else None
        allow_many_files()
        app = create_app(state, _version(), limits, counts, fetch)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                settings.host,
                settings.port,
                log_config=None,
                access_log=False,
                proxy_headers=False,
                loop="asyncio",
                http=Protocol,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        log.info("Serving on http://%s:%d; Ctrl-C ends it", settings.host, settings.port)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal that ended it once more
            server.run()
        if not server.started:
            raise ConfigError(
                "The address cannot be used.",
                where=f"Serve.host={settings.host}, Serve.port={settings.port}",
                fix="Choose another port, or end the program that has it.",
                code="serve-address",
            )
        return {"requests": sum(counts.requests.values())}
    finally:
        state.close()


def _version() -> str:
    try:
        return metadata.version("paddlex_feat")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "0"
