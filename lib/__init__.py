"""Options, the method, evaluation, sessions, training and the commands. docs/architecture.md lists the packages."""
