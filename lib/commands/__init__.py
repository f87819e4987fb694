"""What one call of main.py does: one module a command."""
