"""Quantisers: latents to symbols and back."""
