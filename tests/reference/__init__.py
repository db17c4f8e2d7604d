"""The equations again as plain loops over images, classes and pixels: slow, and easy to read.

Everything takes and returns nested lists of Python numbers, so nothing is shared with the code
under test: ``probs[b][c][y][x]``, ``labels[b][y][x]``.
"""
