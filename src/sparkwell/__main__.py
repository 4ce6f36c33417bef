"""`python -m sparkwell` is the `sparkwell` command."""

from sparkwell.cli import main

if __name__ == "__main__":
    main()
