"""AND: options, the method itself, evaluation, sessions and the runner that drives them."""
