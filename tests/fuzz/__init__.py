"""Hostile files: what to build them from, what must hold for each, and runs of many."""
