"""Training: recipes, data, losses, the optimiser, the loop, and the export to integers."""
