"""AutoAugment and 3-Augment as timm means them: a sub-policy for each image, one or two ops each.

Sources: AutoAugment (Cubuk et al. 2018, arXiv 1805.09501), 3-Augment (Touvron et al. 2022, arXiv 2204.07118);
`timm.data.auto_augment` (`auto_augment_policy_…`). An entry of a table is (kind, probability, level 0..10).
"""

import re
from dataclasses import dataclass

import numpy as np

from rsbdali.bounded import shown
from rsbdali.errors import RecipeError
from rsbdali.plan.kinds import BLURS, Kind

Entry = tuple[Kind, float, float]
Table = tuple[tuple[Entry, ...], ...]


def _v0(posterize: Kind) -> Table:
    return (
        ((Kind.EQUALIZE, 0.8, 1), (Kind.SHEAR_Y, 0.8, 4)),
        ((Kind.COLOR, 0.4, 9), (Kind.EQUALIZE, 0.6, 3)),
        ((Kind.COLOR, 0.4, 1), (Kind.ROTATE, 0.6, 8)),
        ((Kind.SOLARIZE, 0.8, 3), (Kind.EQUALIZE, 0.4, 7)),
        ((Kind.SOLARIZE, 0.4, 2), (Kind.SOLARIZE, 0.6, 2)),
        ((Kind.COLOR, 0.2, 0), (Kind.EQUALIZE, 0.8, 8)),
        ((Kind.EQUALIZE, 0.4, 8), (Kind.SOLARIZE_ADD, 0.8, 3)),
        ((Kind.SHEAR_X, 0.2, 9), (Kind.ROTATE, 0.6, 8)),
        ((Kind.COLOR, 0.6, 1), (Kind.EQUALIZE, 1.0, 2)),
        ((Kind.INVERT, 0.4, 9), (Kind.ROTATE, 0.6, 0)),
        ((Kind.EQUALIZE, 1.0, 9), (Kind.SHEAR_Y, 0.6, 3)),
        ((Kind.COLOR, 0.4, 7), (Kind.EQUALIZE, 0.6, 0)),
        ((posterize, 0.4, 6), (Kind.AUTO_CONTRAST, 0.4, 7)),
        ((Kind.SOLARIZE, 0.6, 8), (Kind.COLOR, 0.6, 9)),
        ((Kind.SOLARIZE, 0.2, 4), (Kind.ROTATE, 0.8, 9)),
        ((Kind.ROTATE, 1.0, 7), (Kind.TRANSLATE_Y_REL, 0.8, 9)),
        ((Kind.SHEAR_X, 0.0, 0), (Kind.SOLARIZE, 0.8, 4)),
        ((Kind.SHEAR_Y, 0.8, 0), (Kind.COLOR, 0.6, 4)),
        ((Kind.COLOR, 1.0, 0), (Kind.ROTATE, 0.6, 2)),
        ((Kind.EQUALIZE, 0.8, 4), (Kind.EQUALIZE, 0.0, 8)),
        ((Kind.EQUALIZE, 1.0, 4), (Kind.AUTO_CONTRAST, 0.6, 2)),
        ((Kind.SHEAR_Y, 0.4, 7), (Kind.SOLARIZE_ADD, 0.6, 7)),
        ((posterize, 0.8, 2), (Kind.SOLARIZE, 0.6, 10)),
        ((Kind.SOLARIZE, 0.6, 8), (Kind.EQUALIZE, 0.6, 1)),
        ((Kind.COLOR, 0.8, 6), (Kind.ROTATE, 0.4, 5)),
    )


def _original(posterize: Kind) -> Table:
    return (
        ((posterize, 0.4, 8), (Kind.ROTATE, 0.6, 9)),
        ((Kind.SOLARIZE, 0.6, 5), (Kind.AUTO_CONTRAST, 0.6, 5)),
        ((Kind.EQUALIZE, 0.8, 8), (Kind.EQUALIZE, 0.6, 3)),
        ((posterize, 0.6, 7), (posterize, 0.6, 6)),
        ((Kind.EQUALIZE, 0.4, 7), (Kind.SOLARIZE, 0.2, 4)),
        ((Kind.EQUALIZE, 0.4, 4), (Kind.ROTATE, 0.8, 8)),
        ((Kind.SOLARIZE, 0.6, 3), (Kind.EQUALIZE, 0.6, 7)),
        ((posterize, 0.8, 5), (Kind.EQUALIZE, 1.0, 2)),
        ((Kind.ROTATE, 0.2, 3), (Kind.SOLARIZE, 0.6, 8)),
        ((Kind.EQUALIZE, 0.6, 8), (posterize, 0.4, 6)),
        ((Kind.ROTATE, 0.8, 8), (Kind.COLOR, 0.4, 0)),
        ((Kind.ROTATE, 0.4, 9), (Kind.EQUALIZE, 0.6, 2)),
        ((Kind.EQUALIZE, 0.0, 7), (Kind.EQUALIZE, 0.8, 8)),
        ((Kind.INVERT, 0.6, 4), (Kind.EQUALIZE, 1.0, 8)),
        ((Kind.COLOR, 0.6, 4), (Kind.CONTRAST, 1.0, 8)),
        ((Kind.ROTATE, 0.8, 8), (Kind.COLOR, 1.0, 2)),
        ((Kind.COLOR, 0.8, 8), (Kind.SOLARIZE, 0.8, 7)),
        ((Kind.SHARPNESS, 0.4, 7), (Kind.INVERT, 0.6, 8)),
        ((Kind.SHEAR_X, 0.6, 5), (Kind.EQUALIZE, 1.0, 9)),
        ((Kind.COLOR, 0.4, 0), (Kind.EQUALIZE, 0.6, 3)),
        ((Kind.EQUALIZE, 0.4, 7), (Kind.SOLARIZE, 0.2, 4)),
        ((Kind.SOLARIZE, 0.6, 5), (Kind.AUTO_CONTRAST, 0.6, 5)),
        ((Kind.INVERT, 0.6, 4), (Kind.EQUALIZE, 1.0, 8)),
        ((Kind.COLOR, 0.6, 4), (Kind.CONTRAST, 1.0, 8)),
        ((Kind.EQUALIZE, 0.8, 8), (Kind.EQUALIZE, 0.6, 3)),
    )


TABLES: dict[str, Table] = {
    "v0": _v0(Kind.POSTERIZE),
    "v0r": _v0(Kind.POSTERIZE_INCREASING),
    "original": _original(Kind.POSTERIZE_ORIGINAL),
    "originalr": _original(Kind.POSTERIZE_INCREASING),
    "3a": (
        ((Kind.SOLARIZE, 1.0, 5),),  # at half the levels
        ((Kind.DESATURATE, 1.0, 10),),  # gray
        ((Kind.GAUSSIAN_BLUR_RAND, 1.0, 10),),  # radius 0.1 to 2 pixels
    ),
}


@dataclass(frozen=True)
class AutoAugmentPolicy:
    """A parsed `aa` string such as `original-mstd0.5`.

    Attributes:
        name: of the table: v0, v0r, original, originalr or 3a.
        magnitude_std: standard deviation of the level (`mstd`).
    """

    name: str
    magnitude_std: float = 0.0

    @property
    def num_layers(self) -> int:
        """L, ops of a sub-policy."""
        return max(len(entries) for entries in TABLES[self.name])

    @property
    def blurs(self) -> bool:
        """Whether a sub-policy blurs."""
        return any(kind in BLURS for entries in TABLES[self.name] for kind, _, _ in entries)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """kind_SL int8, prob_SL and level_SL float64 of the S sub-policies."""
        table_SL3 = np.array([list(entries) for entries in TABLES[self.name]], np.float64)
        return table_SL3[..., 0].astype(np.int8), table_SL3[..., 1], table_SL3[..., 2]

    @classmethod
    def parse(cls, aa: str) -> "AutoAugmentPolicy":
        """Read timm's config string.

        Raises:
            RecipeError: no such table, or an unknown section.
        """
        name, *sections = aa.split("-")
        if name not in TABLES:
            raise RecipeError(f"aa={shown(aa)}: AutoAugment's policies are {', '.join(TABLES)}")
        std = 0.0
        for section in sections:
            match = re.fullmatch(r"mstd(\d+(?:\.\d+)?|\d*\.\d+)", section)
            if match is None:
                raise RecipeError(f"aa={shown(aa)}: section {shown(section)} is not mstdS")
            std = float(match[1])
        return cls(name, std)
