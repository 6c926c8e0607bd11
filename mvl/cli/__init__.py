"""What is typed: arguments are parsed, one function is called, and an exit code returned.

The top floor: it may import every layer, and nothing imports it.
"""
