"""`python -m ivr_dagster` is the command `ivr`."""

from ivr_dagster.cli.app import main

if __name__ == "__main__":
    main()
