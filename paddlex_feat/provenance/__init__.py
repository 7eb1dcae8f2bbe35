"""What made a run, and whether it is still so: run.json (`run_record`), resumed runs (`lineage`), `verify`."""

from paddlex_feat.provenance.run_record import sha256_of, write_end, write_start

__all__ = ["sha256_of", "write_end", "write_start"]
