"""PixelCNN++: the network, teacher-forced, its files, the likelihoods it gives, and its training."""
