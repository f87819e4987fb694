"""One run on several processes: who they are, which rows each holds, and what they exchange."""
