"""Downscale precipitation from 10 km to 1 km with a wavelet diffusion model, without torch."""
