"""Image files: finding, decoding, checking and caching them."""
