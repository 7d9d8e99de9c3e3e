"""`python -m ivr_dagster` runs the command `ivr`."""

from ivr_dagster.cli.app import main

if __name__ == "__main__":
    main()
