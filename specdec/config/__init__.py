"""The typed settings: `params.yaml`, its profiles, and what comes from the environment."""

from specdec.config.environment import Environment, parse_urls
from specdec.config.files import load_params, profile_names, use_profile, validated
from specdec.config.schema import (
    CloneData,
    DrafterSettings,
    EmbeddedBase,
    Evaluate,
    EvaluationFile,
    FetchBase,
    MedusaSettings,
    Params,
    PreparePrompts,
    Register,
    Sampling,
    Synthesize,
    Temperature,
    TrainingSettings,
)

__all__ = [
    "CloneData",
    "DrafterSettings",
    "EmbeddedBase",
    "Environment",
    "Evaluate",
    "EvaluationFile",
    "FetchBase",
    "MedusaSettings",
    "Params",
    "PreparePrompts",
    "Register",
    "Sampling",
    "Synthesize",
    "Temperature",
    "TrainingSettings",
    "load_params",
    "parse_urls",
    "profile_names",
    "use_profile",
    "validated",
]
