"""What GPU code a file, wheel or installed package holds, and where it runs."""
