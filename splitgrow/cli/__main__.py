"""Runs the command as `python -m splitgrow.cli`, also where no script was installed."""

from splitgrow.cli.main import main

main(prog_name="splitgrow")
