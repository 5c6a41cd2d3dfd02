"""The ten classes of the demo data as masks: `PATTERNS[name](rng, width, height)` -> float32 (H, W) in 0..1.

Shapes are strewn over the whole picture, textures fill it; scale, angle and position are random in every class.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Pattern = Callable[[np.random.Generator, int, int], np.ndarray]
PERIODS = (40.0, 90.0)  # pixels of one repeat of a texture, and of one cell that holds a shape
OVERSAMPLING = 2  # shapes are drawn larger and averaged, for soft edges


def _unit(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Turned and shifted coordinates u, v (float32, (H, W), one repeat = 1), and the pixels of one repeat."""
    period, angle = rng.uniform(*PERIODS), rng.uniform(0, np.pi)
    u0, v0 = rng.uniform(0, 1, 2)
    y_H1, x_1W = np.ogrid[:height, :width]
    cos, sin = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    x_1W, y_H1 = x_1W.astype(np.float32), y_H1.astype(np.float32)
    return cos * x_1W + sin * y_H1 + np.float32(u0), cos * y_H1 - sin * x_1W + np.float32(v0), period


def _edge(distance_HW: np.ndarray, period: float) -> np.ndarray:
    """1 where the distance (in repeats) is positive, 0 elsewhere, with an edge about 2 pixels wide."""
    return np.clip(distance_HW * np.float32(period / 2) + np.float32(0.5), 0, 1)


def _wave(u_HW: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 in -0.25..0.25: the distance to the next edge of a grid of equal bars."""
    return np.abs(u_HW - np.floor(u_HW) - np.float32(0.5)) - np.float32(0.25)


def stripes(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Straight parallel bars."""
    u, _, period = _unit(rng, width, height)
    return _edge(_wave(u), period)


def zigzag(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Parallel bars folded into chevrons."""
    u, v, period = _unit(rng, width, height)
    return _edge(_wave(u + 2 * _wave(v * np.float32(0.6))), period)


def checks(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A chessboard."""
    u, v, period = _unit(rng, width, height)
    a, b = _edge(_wave(u), period), _edge(_wave(v), period)
    return a + b - 2 * a * b


def bricks(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Thin joints of a wall, each course shifted by half a brick."""
    u, v, period = _unit(rng, width, height)
    course = np.floor(v)
    along = u * np.float32(0.5) + course * np.float32(0.5)
    joint_u = np.float32(0.06) - np.abs(along - np.floor(along) - np.float32(0.5)) * 2
    # horizontal joints are where v is a whole number, upright ones in the middle of `along`
    joint_v = np.float32(0.06) - np.minimum(v - course, 1 - (v - course))
    return _edge(np.maximum(joint_u, joint_v), period)


def ripples(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Concentric circles around one point in or near the picture."""
    period = rng.uniform(*PERIODS) * 0.7
    y0, x0 = rng.uniform(0.2, 0.8, 2) * (height, width)
    y_H1, x_1W = np.ogrid[:height, :width]
    radius = np.hypot((y_H1 - y0).astype(np.float32), (x_1W - x0).astype(np.float32)) / np.float32(period)
    return _edge(_wave(radius), period)


def _strew(outline_K2: np.ndarray, hole_K2: np.ndarray | None = None) -> Pattern:
    """A pattern of one shape, repeated on a jittered grid.

    Args:
        outline_K2: corners of the shape, in units of its radius.
        hole_K2: corners of what is taken out of it.
    """

    def pattern(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
        cell = rng.uniform(*PERIODS) * 1.3
        grid_yx = np.mgrid[-1 : int(height / cell) + 2, -1 : int(width / cell) + 2]
        centre_S2 = np.stack([grid_yx[1].ravel(), grid_yx[0].ravel()], axis=1)
        centre_S2 = (centre_S2 + rng.uniform(0.35, 0.65, centre_S2.shape)) * cell
        radius_S = cell * rng.uniform(0.34, 0.46, len(centre_S2))
        angle_S = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.6, 0.6, len(centre_S2))
        cos_S, sin_S = radius_S * np.cos(angle_S), radius_S * np.sin(angle_S)
        turn_S22 = np.stack([np.stack([cos_S, sin_S], axis=1), np.stack([-sin_S, cos_S], axis=1)], axis=1)
        image = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
        pen = ImageDraw.Draw(image)
        for corners_K2, fill in ((outline_K2, 255), (hole_K2, 0)):
            if corners_K2 is not None:
                points_SK2 = (centre_S2[:, None] + corners_K2 @ turn_S22) * OVERSAMPLING
                for points in points_SK2.reshape(len(centre_S2), -1).tolist():
                    pen.polygon(points, fill=fill)
        return np.asarray(image.reduce(OVERSAMPLING), np.float32) / np.float32(255)

    return pattern


def _regular(corners: int, radius: float | tuple[float, float] = 1.0) -> np.ndarray:
    """Corners of a regular polygon, or of a star of two alternating radii: (corners, 2)."""
    angle_K = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angle_K), np.sin(angle_K)], axis=1) * np.resize(radius, (corners, 1))


def _cross(half_width: float) -> np.ndarray:
    """Corners of an upright cross with arms of length 1: (12, 2)."""
    w = half_width
    return np.array(
        [(w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w), (-w, -1), (w, -1), (w, -w), (1, -w), (1, w)]
    )


discs = _strew(_regular(32, 0.9))
rings = _strew(_regular(32), _regular(32, 0.62))
triangles = _strew(_regular(3, 1.15))
stars = _strew(_regular(10, (1.2, 0.46)))
crosses = _strew(_cross(0.26))

PATTERNS: dict[str, Pattern] = {
    "bricks": bricks,
    "checks": checks,
    "crosses": crosses,
    "discs": discs,
    "rings": rings,
    "ripples": ripples,
    "stars": stars,
    "stripes": stripes,
    "triangles": triangles,
    "zigzag": zigzag,
}
