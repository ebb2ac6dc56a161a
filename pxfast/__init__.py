"""Fast PixelDefend: purify images with a PixelCNN++ and compiled, cached decoding."""

__version__ = "0.1.0"
