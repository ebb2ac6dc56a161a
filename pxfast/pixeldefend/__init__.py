"""PixelDefend (Song et al., ICLR 2018): purification, its verification, sampling and detection."""
