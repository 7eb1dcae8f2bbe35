"""The cache folder, under the name by which downloads know it."""

from paddlex_feat.fileio.cache import ENV_CACHE, cache_folder, cache_to_write, download_lock

__all__ = ["ENV_CACHE", "cache_folder", "cache_to_write", "download_lock"]
