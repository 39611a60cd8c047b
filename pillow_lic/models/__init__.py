"""The networks: transforms, hyperprior, and the loading of trained weights."""
