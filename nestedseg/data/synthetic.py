"""Synthetic fluorescence images of cell nuclei with exact labels, made from a seed.

They have what makes real images hard: uneven light, out-of-focus haze, blur, shot noise and read
noise, bright beside faint nuclei, large beside small nuclei, and nuclei that touch.
"""

from __future__ import annotations

import numpy as np

from nestedseg.base.extras import require

RADIUS = (4.0, 13.0)  # pixels
AREA_PER_NUCLEUS = 800  # pixels of the image: nuclei then cover a quarter to a third of it
TOUCHING = 0.35  # the fraction of nuclei that are placed beside another
ATTEMPTS = 20  # places tried for a nucleus before it is left out of a crowded image


def synthetic_nuclei(n: int, size: int = 256, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Makes ``n`` images of nuclei with labels. The same seed gives the same images.

    Args:
        n: number of images.
        size: height and width in pixels, at least 32.
        seed: image ``i`` depends only on ``(seed, i)``, not on ``n``.

    Returns:
        Images ``(n, size, size)`` uint8 and labels ``(n, size, size)`` uint16, where 0 is
        background and 1, 2, ... number the nuclei.

    Raises:
        ValueError: ``n`` < 1 or ``size`` < 32.
    """
    if n < 1 or size < 32:
        raise ValueError(f"n must be at least 1 and size at least 32, got n={n}, size={size}")
    pictures = [_picture(size, np.random.default_rng([seed, index])) for index in range(n)]
    images, labels = zip(*pictures, strict=True)
    return np.stack(images), np.stack(labels)


def _picture(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    label = _place_nuclei(size, rng)
    return _photograph(label, rng), label


def _place_nuclei(size: int, rng: np.random.Generator) -> np.ndarray:
    label = np.zeros((size, size), np.uint16)
    placed: list[tuple[np.ndarray, float]] = []  # centre (x, y), radius
    wanted = max(2, round(size * size / AREA_PER_NUCLEUS * rng.uniform(0.6, 1.3)))
    for _ in range(wanted):
        radius = rng.uniform(*RADIUS) * rng.uniform(0.8, 1.2)
        touch = bool(placed) and rng.random() < TOUCHING
        for _ in range(ATTEMPTS):
            centre = _beside(placed, radius, rng) if touch else rng.uniform(0, size, 2)
            mask = _nucleus(size, centre, radius, rng)
            free = mask & (label == 0)
            # Part of a nucleus may lie under its neighbour, but most of it must be seen.
            if free.sum() >= max(12, 0.85 * mask.sum()) and (touch or free.sum() == mask.sum()):
                placed.append((centre, radius))
                label[free] = len(placed)
                break
    return label


def _beside(placed: list[tuple[np.ndarray, float]], radius: float,
            rng: np.random.Generator) -> np.ndarray:
    centre, other = placed[rng.integers(len(placed))]
    angle = rng.uniform(0, 2 * np.pi)
    return centre + 0.95 * (radius + other) * np.array([np.cos(angle), np.sin(angle)])


def _nucleus(size: int, centre: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """The mask of one nucleus, boolean ``(size, size)``: an ellipse bent by two low harmonics."""
    cv2 = require("cv2")
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    bend = sum(rng.uniform(0, 0.09) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
               for k in (2, 3))
    stretch = np.sqrt(rng.uniform(1, 1.7))
    x, y = radius * (1 + bend) * np.stack([np.cos(angle) * stretch, np.sin(angle) / stretch])
    turn = rng.uniform(0, np.pi)
    outline = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)])
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(outline.T + centre).astype(np.int32)], 1)
    return mask.astype(bool)


def _photograph(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cv2 = require("cv2")
    size = len(label)
    brightness = np.r_[0.0, rng.lognormal(-0.7, 0.45, int(label.max()))]
    chromatin = 1 + 0.22 * _smooth_noise(size, 1.8, rng)
    nuclei = brightness[label] * chromatin
    haze = 0.22 * cv2.GaussianBlur(nuclei, (0, 0), 14)
    focus = cv2.GaussianBlur(nuclei, (0, 0), rng.uniform(0.8, 1.7))
    background = rng.uniform(0.03, 0.09) * (1 + 0.35 * _smooth_noise(size, size / 6, rng))
    light = np.clip(1 + 0.3 * _smooth_noise(size, size / 3, rng), 0.3, None)
    photons = rng.uniform(90, 220)  # for a value of 1: fewer photons, more shot noise
    signal = rng.poisson(photons * np.clip(light * (focus + haze + background), 0, None)) / photons
    signal = signal + rng.normal(0, 0.012, signal.shape)
    return np.clip(255 * signal / 1.4, 0, 255).astype(np.uint8)


def _smooth_noise(size: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """A random field of mean 0 and standard deviation 1 that varies over ``sigma`` pixels."""
    cv2 = require("cv2")
    field = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), sigma)
    return (field - field.mean()) / field.std()
