"""Files from the network.

fetch     a URL's local copy: `fetch_url`, `fetch_weights`, `local_file`
download  one resumable download (imports requests, so `fetch` imports it only for a download)
cache     where downloads are cached: `cache_folder`, `cache_to_write`
starter   the weights that an installed package has: `starter_weights`
urls      what is an address, mirrors, passwords, file names
tar       unpack an archive that may be hostile: `unpack_tar`
"""

from paddlex_feat.hub.cache import cache_folder, cache_to_write
from paddlex_feat.hub.fetch import fetch_url, fetch_weights, local_file
from paddlex_feat.hub.starter import starter_weights
from paddlex_feat.hub.tar import unpack_tar
from paddlex_feat.hub.urls import is_url, without_password

__all__ = [
    "cache_folder",
    "cache_to_write",
    "fetch_url",
    "fetch_weights",
    "is_url",
    "local_file",
    "starter_weights",
    "unpack_tar",
    "without_password",
]
