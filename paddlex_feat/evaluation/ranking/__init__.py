"""Rank a gallery for queries, exactly: `ranks.rank_gallery`."""
