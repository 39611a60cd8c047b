"""The exact entropy path: integer networks, probability tables and the range coder."""
