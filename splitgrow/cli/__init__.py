"""The `splitgrow` command: options, console and exit codes."""
