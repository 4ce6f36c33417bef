"""Bytes of executables, fatbins, cubins and PTX, and the facts in them."""
