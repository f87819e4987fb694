"""Pages that open offline: figures by matplotlib, templates by jinja2, everything in one file. No PyTorch here."""
