"""The `sparkwell` command."""

from sparkwell.cli.app import app, main

__all__ = ["app", "main"]
