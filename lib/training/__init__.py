"""Training: optimiser, learning rate, one epoch, and the rounds of the curriculum."""
