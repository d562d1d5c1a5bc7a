"""What a synthetic data set is like: cardinalities, skew, the teacher's parts, drift; and the fitted presets."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slipstream.errors import ConfigError

CRITEO_KAGGLE_CARDINALITIES: Final = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
"""Distinct values of C1 … C26 in the Criteo Kaggle training file."""

_NEVER_SCALED_BELOW = 1_000
"""Rows under which ``scale`` leaves a feature alone: scaled, small fields would turn into constants."""

Preset = Literal["default", "starved"]


class SyntheticConfig(BaseModel):
    """What to generate. :meth:`preset` gives the fitted sets; every field can be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_samples: int = Field(default=4_000_000, gt=0)
    """Samples."""
    cardinalities: tuple[int, ...] = CRITEO_KAGGLE_CARDINALITIES
    """Rows of each categorical feature before ``scale``, without the out-of-vocabulary row."""
    scale: float = Field(default=0.03, gt=0.0, le=1.0)
    """Factor on the cardinalities above 1,000; none falls below 1,000 by it."""
    zipf_exponent: float | tuple[float, ...] = 1.1
    """Exponent of the rank-frequency law, one for all features or one for each; 0 is uniform."""
    num_dense: int = Field(default=13, ge=0, le=256)
    """Dense features, standard normal and independent."""
    base_rate: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Share of positives."""
    first_order_std: float = Field(default=1.05, ge=0.0)
    """Standard deviation that the rows' own effects give to the logit."""
    pairwise_std: float = Field(default=0.6, ge=0.0)
    """Standard deviation that products of the rows' hidden vectors give to the logit."""
    dense_std: float = Field(default=0.8, ge=0.0)
    """Standard deviation that the dense features (linear and quadratic) give to the logit."""
    tail_shrinkage: float = Field(default=0.7, ge=0.0)
    """Effects of the row at popularity rank k are scaled by (1 + k / ``tail_from``)^−``tail_shrinkage``; 0: the tail
    matters as much as the head."""
    tail_from: float = Field(default=30.0, gt=0.0)
    """Rank from which effects shrink."""
    popularity_drift: float = Field(default=0.0, ge=0.0)
    """Times that the holder of each popularity rank is replaced by another row, per million samples, at staggered
    moments."""
    effect_drift: float = Field(default=0.0, ge=0.0)
    """Times that each row's effects are redrawn, per million samples; in between they move linearly from one draw to
    the next."""
    days: float = Field(default=7.0, gt=0.0)
    """Days that the time stamps cover, evenly."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of teacher and samples."""

    @model_validator(mode="after")
    def _check(self) -> SyntheticConfig:
        if not self.cardinalities or len(self.cardinalities) > 256:
            raise ConfigError(f"cardinalities must name 1 to 256 features, got {len(self.cardinalities)}")
        if min(self.cardinalities) < 1 or max(self.cardinalities) >= 2**31 - 1:
            raise ConfigError(
                f"cardinalities must be in [1, 2^31 - 2], got {min(self.cardinalities)} to {max(self.cardinalities)}"
            )
        if len(self.exponents) != len(self.cardinalities):
            features = len(self.cardinalities)
            raise ConfigError(
                f"zipf_exponent must be one number or one for each of {features} features, got {len(self.exponents)}"
            )
        if not all(0.0 <= s <= 4.0 for s in self.exponents):
            raise ConfigError(f"zipf_exponent must be in [0, 4], got {self.zipf_exponent}")
        if self.first_order_std + self.pairwise_std + self.dense_std * bool(self.num_dense) == 0.0:
            raise ConfigError(
                "at least one of first_order_std, pairwise_std, dense_std must be above 0 (the labels would be noise)"
            )
        return self

    @property
    def exponents(self) -> tuple[float, ...]:
        """Exponent of each feature."""
        if isinstance(self.zipf_exponent, tuple):
            return self.zipf_exponent
        return (self.zipf_exponent,) * len(self.cardinalities)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of each feature after scaling, without the out-of-vocabulary row."""
        return tuple(max(min(c, _NEVER_SCALED_BELOW), round(c * self.scale)) for c in self.cardinalities)

    @classmethod
    def preset(cls, name: Preset, **changes: Any) -> SyntheticConfig:
        """A fitted configuration, with changes.

        Args:
            name: ``default`` (as redundant as Criteo Kaggle: halving the data costs 0.003-0.006 AUC) or ``starved``
                (halving costs 0.02 or more).
            **changes: Fields that replace the preset's.

        Raises:
            ConfigError: An unknown preset, or a value out of its range.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown synthetic preset {name!r}", remedy=f"choose one of {', '.join(PRESETS)}")
        try:
            return cls(**{**PRESETS[name], **changes})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"synthetic data: {where + ': ' if where else ''}{first['msg']}") from error


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "starved": {
        "num_samples": 1_000_000,
        "scale": 0.01,
        "zipf_exponent": 0.8,
        "tail_shrinkage": 0.0,
        "first_order_std": 1.2,
        "pairwise_std": 1.8,
        "dense_std": 0.3,
    },
}
"""Fields in which each preset differs from the defaults."""
