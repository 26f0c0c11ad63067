"""Shipped experiments as YAML files, and the loader that reads, merges and checks them."""

from pictish.configs.loader import Config, load, parse, shipped_names

__all__ = ["Config", "load", "parse", "shipped_names"]
