"""A run on several processes: launch, process group, collectives, sharded rows."""
