"""What works on tensors alone: activations, fixed batches, seeds, safetensors."""
