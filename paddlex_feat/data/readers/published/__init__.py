"""Data sets of the field in the layouts in which they were published, divided as papers do."""

from paddlex_feat.data.readers.published.cars import CARS
from paddlex_feat.data.readers.published.cub import CUB
from paddlex_feat.data.readers.published.in_shop import IN_SHOP
from paddlex_feat.data.readers.published.market import MARKET
from paddlex_feat.data.readers.published.online_products import ONLINE_PRODUCTS

PUBLISHED = (IN_SHOP, ONLINE_PRODUCTS, CUB, CARS, MARKET)
__all__ = ["PUBLISHED"]
