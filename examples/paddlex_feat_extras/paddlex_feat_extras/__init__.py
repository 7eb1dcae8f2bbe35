"""A loss and a backbone for paddlex_feat.

The specifications here are read before Paddle is imported, so this file must not import it.
"""

from paddlex_feat.config.base import Section, key
from paddlex_feat.losses import LossSpec
from paddlex_feat.models import BackboneSpec


class ProxyNCAParams(Section):
    """Keys of the loss proxy_nca."""

    scale: float = key(9.0, "Factor on the squared distances.", gt=0)


class TinyConvParams(Section):
    """Keys of the backbone tiny_conv, in Model.params."""

    width: int = key(16, "Channels of the first convolution; each later one has twice as many.", ge=1, le=1024)


PROXY_NCA = LossSpec(
    name="proxy_nca",
    term="ProxyNCALoss",
    needs="features",
    make="paddlex_feat_extras.proxy_nca:proxy_nca",
    params=ProxyNCAParams,
)

TINY_CONV = BackboneSpec(
    name="tiny_conv",
    build="paddlex_feat_extras.tiny_conv:tiny_conv",
    params=TinyConvParams,
    stride=8,
    size_from_keys=True,
)
