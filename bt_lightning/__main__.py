"""`python -m bt_lightning`: the command line."""

from bt_lightning.cli.app import main

if __name__ == "__main__":
    main()
