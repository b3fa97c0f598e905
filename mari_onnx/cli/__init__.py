"""The command line: one module per command; heavy libraries are imported when a command runs."""
