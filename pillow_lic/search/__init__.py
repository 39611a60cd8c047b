"""Encoder search: which symbols to send, and at which quality."""
