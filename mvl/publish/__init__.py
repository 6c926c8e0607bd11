"""What readers see: figures, pages, notebooks, the book and the checks of the built book.

It imports `evidence` and what lies below.
"""
