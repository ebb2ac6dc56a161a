"""ADP (Yoon, Hwang and Lee, ICML 2021): purification by noise and steps along a score network."""
