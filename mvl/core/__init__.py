"""The ground floor: configuration, run folders, files, seeds, the machine, columns and errors.

What every other layer needs and nobody else should write again. It imports the standard library and
small packages alone, so that `mvl --help` starts in half a second.
"""
