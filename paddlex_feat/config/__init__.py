"""Configuration: keys (schema), per-model defaults (recipes), reading (load)."""
