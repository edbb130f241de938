"""Train wavelet diffusion models on radar data and export them as bundles for `wdm_runtime`."""
