"""What every room may use: errors, checks, files, console, the machine. Needs the standard library and NumPy."""
