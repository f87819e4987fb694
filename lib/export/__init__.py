"""What is made of a finished network: exported folders, features of new images, a model to call from Python."""
