"""Context models: what is already decoded sharpens the probabilities of what is still to come."""
