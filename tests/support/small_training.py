"""A training of a small PixelCNN, which several tests run."""

from pxfast.pixelcnn.network import PixelCNNConfig
from pxfast.pixelcnn.training import TrainingSettings

CONFIG = PixelCNNConfig((8, 8), channels=1, filters=6, resnets=1, mixtures=3, dropout=0.2)
SETTINGS = TrainingSettings(batch_size=16, epochs=10, warmup=5, precision="fp32", horizontal_flips=True)
