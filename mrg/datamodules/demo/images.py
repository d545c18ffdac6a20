"""Synthetic chest radiographs for the demo: anatomy, then one visible structure per finding, then noise.

Nothing here comes from a patient. A radiograph is a sum of soft shapes on a grid of size x size pixels. Positions,
sizes and brightness vary between studies, structures overlap, and weak structures are hard to see in the noise. As in a
real radiograph, the image shows only the *strength* of a structure, not whether a weak one is a finding.
"""

from __future__ import annotations

import dataclasses

import numpy as np

Grid = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Body:
    """Variation between patients: shifts and scales in units of half the image width, and brightness."""

    shift: tuple[float, float]
    lung: tuple[float, float]
    heart: float
    mediastinum: float
    brightness: float


def sample_body(rng: np.random.Generator) -> Body:
    """Sample a body with a heart and a mediastinum of normal size."""
    return Body(
        shift=(rng.normal(0, 0.03), rng.normal(0, 0.03)),
        lung=(rng.normal(1, 0.04), rng.normal(1, 0.05)),
        heart=rng.normal(1, 0.05),
        mediastinum=rng.normal(1, 0.06),
        brightness=rng.normal(0, 0.04),
    )


def grid(size: int) -> Grid:
    """Coordinates (x, y) of a size x size image in [-1, 1]; x increases to the right, y downwards."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return axis[None, :], axis[:, None]


def ellipse(at: Grid, x: float, y: float, width: float, height: float, softness: float = 0.15) -> np.ndarray:
    """A soft-edged ellipse: 1 inside, 0 outside."""
    radius = np.sqrt(((at[0] - x) / width) ** 2 + ((at[1] - y) / height) ** 2)
    return np.clip((1 + softness - radius) / (2 * softness), 0, 1)


def blob(at: Grid, x: float, y: float, width: float, height: float) -> np.ndarray:
    """A Gaussian blob."""
    return np.exp(-(((at[0] - x) / width) ** 2) - ((at[1] - y) / height) ** 2)


def line(at: Grid, start: tuple[float, float], end: tuple[float, float], width: float) -> np.ndarray:
    """A soft straight line between two points."""
    (x0, y0), (x1, y1) = start, end
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((at[0] - x0) * dx + (at[1] - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    distance = (at[0] - x0 - along * dx) ** 2 + (at[1] - y0 - along * dy) ** 2
    return np.exp(-distance / (width * width))


def noise(rng: np.random.Generator, size: int, amount: float) -> np.ndarray:
    """Fine noise plus slow variations of brightness."""
    coarse = np.kron(rng.normal(0, 1, (size // 14, size // 14)), np.ones((14, 14)))[:size, :size]
    return (amount * (rng.normal(0, 1, (size, size)) + 0.5 * coarse)).astype(np.float32)


@dataclasses.dataclass
class Drawing:
    """A frontal view that is being drawn.

    Args:
        rng: Random generator for small shifts of the structures.
        at: Grid, shifted to the position of the patient.
        picture: Brightness so far.
        lung: 1 where lung is visible, not covered by heart or diaphragm.
        strength: Strength in [0, 1] by condition.
        side: -1, 0 (both) or +1 by condition.
    """

    rng: np.random.Generator
    at: Grid
    picture: np.ndarray
    lung: np.ndarray
    strength: dict[str, float]
    side: dict[str, int]

    def s(self, condition: str) -> float:
        """Strength of a condition, 0 if it is not visible."""
        return self.strength.get(condition, 0.0)

    def j(self, scale: float = 0.04) -> float:
        """A small random shift."""
        return float(self.rng.normal(0, scale))

    def sides(self, condition: str) -> tuple[int, ...]:
        """The sides on which a condition is visible."""
        side = self.side[condition]
        return (-1, 1) if side == 0 else (side,)


def frontal(
    rng: np.random.Generator, body: Body, strength: dict[str, float], side: dict[str, int], size: int
) -> np.ndarray:
    """Draw the frontal view.

    Args:
        rng: Random generator for noise and small shifts of the structures.
        body: Variation of the patient.
        strength: Strength in [0, 1] by visible condition.
        side: -1 (the patient's right, left in the image), 0 (both) or +1 by condition.
        size: Width and height in pixels.

    Returns:
        (size, size) uint8.
    """
    drawing = _anatomy(rng, body, strength, side, size)
    _draw_opacities(drawing)
    _draw_lines_and_haze(drawing)
    _draw_pleura(drawing, body)
    _draw_bones_and_devices(drawing)
    return _expose(rng, drawing.picture)


def _anatomy(
    rng: np.random.Generator, body: Body, strength: dict[str, float], side: dict[str, int], size: int
) -> Drawing:
    """Draw lungs, ribs, spine, mediastinum and heart, the latter two enlarged by their conditions."""
    (x, y), (sx, sy) = grid(size), body.shift
    at = (x - sx, y - sy)
    picture: np.ndarray = 0.62 + body.brightness + 0.08 * at[1] + 0 * at[0]
    lungs: np.ndarray = np.zeros((size, size), np.float32)
    for lung_side in (-1, 1):
        lungs = np.maximum(lungs, ellipse(at, 0.47 * lung_side, -0.08, 0.34 * body.lung[0], 0.72 * body.lung[1], 0.1))
    diaphragm = np.clip((at[1] - 0.52 - 0.06 * np.cos(5 * at[0])) * 8 + 0.5, 0, 1)
    lungs = lungs * (1 - diaphragm)
    picture = picture - 0.42 * lungs
    for rib in range(6):
        arch = -0.62 + 0.2 * rib + 0.25 * at[0] ** 2
        picture = picture + 0.05 * np.exp(-(((at[1] - arch) / 0.025) ** 2)) * (np.abs(at[0]) < 0.85)
    picture = picture + 0.22 * np.exp(-((at[0] / 0.09) ** 2))
    width = 0.15 * body.mediastinum * (1 + 0.75 * strength.get("Enlarged Cardiomediastinum", 0.0))
    picture = np.maximum(picture, 0.78 * ellipse(at, 0.0, -0.38, width, 0.36, 0.2))
    size_of_heart = 0.33 * body.heart * (1 + 0.5 * strength.get("Cardiomegaly", 0.0))
    heart = ellipse(at, 0.12 + 0.1 * (size_of_heart - 0.33), 0.27, size_of_heart, 0.29, 0.12)
    return Drawing(rng, at, np.maximum(picture, 0.8 * heart), lungs * (1 - heart), strength, side)


def _draw_opacities(d: Drawing) -> None:
    """Draw opacity, lesion, consolidation and pneumonia."""
    at, s, j = d.at, d.s, d.j
    if s("Lung Opacity"):
        k = d.side["Lung Opacity"]
        for _ in range(3):
            cloud = blob(at, k * (0.5 + j(0.06)), -0.12 + j(0.08), 0.13, 0.11)
            d.picture = d.picture + 0.2 * s("Lung Opacity") * cloud * d.lung
    if s("Lung Lesion"):
        ball = ellipse(at, d.side["Lung Lesion"] * (0.5 + j(0.08)), -0.38 + j(0.08), 0.075, 0.075, 0.3)
        d.picture = d.picture + 0.5 * s("Lung Lesion") * ball
    if s("Consolidation"):
        dense = ellipse(at, d.side["Consolidation"] * (0.48 + j()), 0.3 + j(), 0.24, 0.2, 0.15)
        d.picture = d.picture + 0.38 * s("Consolidation") * dense * d.lung
    if s("Pneumonia"):
        patch = blob(at, d.side["Pneumonia"] * (0.55 + j()), 0.1 + j(), 0.17, 0.15)
        patch = patch * (0.75 + 0.25 * np.sin(40 * (at[0] + at[1])))
        d.picture = d.picture + 0.42 * s("Pneumonia") * patch * d.lung


def _draw_lines_and_haze(d: Drawing) -> None:
    """Draw atelectasis and edema."""
    at, s, j = d.at, d.s, d.j
    if s("Atelectasis"):
        for k in d.sides("Atelectasis"):
            level = 0.36 + j(0.03)
            band = line(at, (k * 0.3, level), (k * 0.72, level - 0.1 + j(0.03)), 0.035)
            d.picture = d.picture + 0.42 * s("Atelectasis") * band * d.lung
    if s("Edema"):
        haze = blob(at, -0.28, -0.02, 0.22, 0.3) + blob(at, 0.28, -0.02, 0.22, 0.3)
        streaks = 0.5 + 0.5 * np.sin(70 * at[1] + 25 * np.abs(at[0]))
        d.picture = d.picture + 0.36 * s("Edema") * haze * (0.6 + 0.4 * streaks) * d.lung


def _draw_pleura(d: Drawing, body: Body) -> None:
    """Draw effusion, pneumothorax and pleural thickening."""
    at, s = d.at, d.s
    if s("Pleural Effusion"):
        for k in d.sides("Pleural Effusion"):
            top = 0.52 - 0.42 * s("Pleural Effusion") - 0.35 * (np.abs(at[0]) - 0.5)
            fluid = np.clip((at[1] - top) * 10 + 0.5, 0, 1) * (at[0] * k > 0.12) * (np.abs(at[0]) < 0.86)
            d.picture = d.picture + 0.4 * min(1.0, 0.3 + s("Pleural Effusion")) * fluid * d.lung
    if s("Pneumothorax"):
        k, (lung_x, lung_y) = d.side["Pneumothorax"], body.lung
        rim = ellipse(at, 0.47 * k, -0.08, 0.34 * lung_x, 0.72 * lung_y, 0.1)
        inner = ellipse(at, 0.47 * k - 0.1 * k * s("Pneumothorax"), 0.06, 0.32 * lung_x, 0.68 * lung_y, 0.06)
        crescent = np.clip(rim - inner, 0, 1) * (at[1] < -0.1)
        edge = np.clip(1 - np.abs(inner - 0.5) * 4, 0, 1) * (at[1] < -0.1) * rim
        d.picture = d.picture - 0.24 * s("Pneumothorax") * crescent + 0.22 * s("Pneumothorax") * edge
    if s("Pleural Other"):
        cap = ellipse(at, 0.44 * d.side["Pleural Other"], -0.78, 0.24, 0.16, 0.2)
        d.picture = d.picture + 0.4 * s("Pleural Other") * cap


def _draw_bones_and_devices(d: Drawing) -> None:
    """Draw a rib fracture and support devices."""
    at, s, j = d.at, d.s, d.j
    if s("Fracture"):
        cx, cy = d.side["Fracture"] * (0.72 + j(0.03)), -0.2 + j(0.12)
        step = line(at, (cx - 0.12, cy - 0.05), (cx, cy - 0.05), 0.03)
        step = step + line(at, (cx, cy + 0.06), (cx + 0.12, cy + 0.06), 0.03)
        d.picture = d.picture + 0.45 * s("Fracture") * step
    if s("Support Devices"):
        d.picture = d.picture + _device(at, d.side["Support Devices"], s("Support Devices"))


def _device(at: Grid, side: int, strength: float) -> np.ndarray:
    """A pacemaker with its lead on the patient's left, or a venous catheter on the right."""
    if side > 0:
        box = ellipse(at, 0.6, -0.62, 0.13, 0.11, 0.1)
        return strength * (0.5 * box + 0.35 * line(at, (0.55, -0.55), (0.1, 0.25), 0.025))
    return strength * (
        0.4 * line(at, (-0.75, -0.6), (-0.12, -0.5), 0.025) + 0.4 * line(at, (-0.12, -0.5), (-0.09, 0.0), 0.025)
    )


def lateral(rng: np.random.Generator, body: Body, strength: dict[str, float], size: int) -> np.ndarray:
    """Draw the lateral view, on which a part of the conditions is visible, too; see `frontal`."""
    (x, y), (sx, sy) = grid(size), body.shift
    at = (x - sx, y - sy)

    def s(condition: str) -> float:
        return strength.get(condition, 0.0)

    picture = 0.6 + body.brightness + 0.1 * at[0] + 0 * at[1]
    lung = ellipse(at, 0.0, -0.05, 0.62 * body.lung[0], 0.74 * body.lung[1], 0.1)
    lung = lung * (1 - np.clip((at[1] - 0.42 + 0.15 * at[0]) * 8 + 0.5, 0, 1))
    picture = picture - 0.36 * lung
    picture = picture + 0.2 * np.exp(-(((at[0] - 0.55 - 0.08 * np.cos(2 * at[1])) / 0.09) ** 2))
    heart = 0.3 * body.heart * (1 + 0.45 * s("Cardiomegaly"))
    picture = np.maximum(picture, 0.72 * ellipse(at, -0.24, 0.2, heart, 0.26, 0.15))
    if s("Pleural Effusion"):
        top = 0.45 - 0.4 * s("Pleural Effusion") - 0.3 * at[0]
        picture = picture + 0.35 * np.clip((at[1] - top) * 10 + 0.5, 0, 1) * (at[0] > 0.1) * lung
    if s("Consolidation"):
        picture = picture + 0.38 * s("Consolidation") * ellipse(at, 0.2, 0.2, 0.22, 0.2, 0.15) * lung
    if s("Pneumonia"):
        picture = picture + 0.34 * s("Pneumonia") * blob(at, 0.05, 0.05, 0.18, 0.16) * lung
    if s("Edema"):
        picture = picture + 0.28 * s("Edema") * blob(at, 0.05, -0.05, 0.28, 0.3) * lung
    if s("Lung Lesion"):
        picture = picture + 0.4 * s("Lung Lesion") * ellipse(at, 0.1, -0.38, 0.075, 0.075, 0.3)
    if s("Support Devices"):
        picture = picture + 0.35 * s("Support Devices") * line(at, (-0.3, -0.6), (-0.2, 0.2), 0.025)
    return _expose(rng, picture)


def _expose(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    size = picture.shape[0]
    contrast = float(rng.normal(1, 0.06))
    exposed = 0.5 + contrast * (picture - 0.5) + noise(rng, size, 0.035)
    pixels: np.ndarray = (255 * np.clip(exposed, 0, 1)).astype(np.uint8)
    return pixels
