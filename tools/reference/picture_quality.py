"""PSNR and SSIM of two pictures by scikit-image, for the constants in crates/conjure/src/evaluate/pixels.rs."""

import numpy as np
import skimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def picture(phase):
    i = np.arange(24 * 17 * 3)
    return ((i * i // 7 + i * phase * 3 + phase * 11) % 256).astype(np.uint8).reshape(17, 24, 3)


a, b = picture(0), picture(1)
print("scikit-image", skimage.__version__)
print("psnr", repr(peak_signal_noise_ratio(a, b)))
options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
print("ssim", repr(structural_similarity(a, b, channel_axis=2, **options)))
