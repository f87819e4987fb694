"""Groups of similar features, and how many there are. Nothing here looks at labels."""
