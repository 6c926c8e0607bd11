"""One layer of a language model: from a hub, from a wheel or from a folder, checked tensor by
tensor.

Only the bytes of the wanted layer are fetched. It imports `core`.
"""
