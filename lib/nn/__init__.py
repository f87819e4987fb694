"""Networks in use: the embedder, batch norm across processes, folded batch norm, Winograd convolutions, precision."""
