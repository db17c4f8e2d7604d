"""A page in the browser that shows what a run's network says of an image, down to a pixel.

Everything but :mod:`u2pl.app.page` works without Gradio.
"""
