"""A loss and a backbone for paddlex_feat.

The specifications here are read before Paddle is imported, so this file must not import it.
"""

from paddlex_feat.config.base import Section, key
from paddlex_feat.losses import LossSpec
from paddlex_feat.models import BackboneSpec


class ProxyAnchorParams(Section):
    """Keys of the loss proxy_anchor."""

    margin: float = key(0.1, "Margin delta of the cosines.", "cosine", ge=0, le=1)
    alpha: float = key(32.0, "Scale of the cosines.", gt=0)


class TinyConvParams(Section):
    """Keys of the backbone tiny_conv, in Model.params."""

    width: int = key(16, "Channels of the first convolution; each later one has twice as many.", ge=1, le=1024)


PROXY_ANCHOR = LossSpec(
    name="proxy_anchor",
    term="ProxyAnchorLoss",
    needs="features",
    make="paddlex_feat_extras.proxy_anchor:proxy_anchor",
    params=ProxyAnchorParams,
)

TINY_CONV = BackboneSpec(
    name="tiny_conv",
    build="paddlex_feat_extras.tiny_conv:tiny_conv",
    params=TinyConvParams,
    stride=8,
    size_from_keys=True,
)
