"""Configuration: keys (`schema`), defaults of the models (`recipes`), reading (`load`), registries (`registry`)."""

from paddlex_feat.config.base import Section
from paddlex_feat.config.registry import Registry
from paddlex_feat.config.schema import Config

__all__ = ["Config", "Registry", "Section"]
