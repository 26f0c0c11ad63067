"""Codes to pixels."""
