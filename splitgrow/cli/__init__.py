"""The `splitgrow` command: `splitgrow demo` and `splitgrow inspect`."""
