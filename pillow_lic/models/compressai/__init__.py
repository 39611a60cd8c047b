"""The networks of the published codecs that CompressAI trains, and what turns its checkpoints into models.

Decoding needs no CompressAI: transforms are repeated in our own layers, and all that decides
probabilities is converted to integers when a checkpoint is imported.
"""
