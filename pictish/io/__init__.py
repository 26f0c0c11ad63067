"""Whole writes, locks, interruption, storage, model folders. Imports nothing of pictish."""
