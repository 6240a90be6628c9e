"""Score how repeatable a run is, by the content of its artifact. Source: kurral 0.1.1, `core/determinism.py`."""

from collections.abc import Sequence
from typing import Final

from domain.artifacts.calls import has_failed
from domain.artifacts.schema import (
    Artifact,
    ArtifactToolCall,
    DeterminismReport,
    LlmConfig,
    ReplayLevel,
    SamplingParameters,
    is_empty,
)

FACTOR_WEIGHTS: Final = {
    "model_version": 0.25,
    "random_seed": 0.20,
    "prompt": 0.20,
    "tool_cache": 0.15,
    "environment": 0.10,
    "parameters": 0.10,
}
LEVEL_A_SCORE: Final = 0.90
LEVEL_B_SCORE: Final = 0.50


def build_report(
    artifact: Artifact, calls: Sequence[ArtifactToolCall], parameters: SamplingParameters, environment: str
) -> DeterminismReport:
    """Score an artifact and each factor, and list the fields that are missing for a better score."""
    breakdown = {
        "model_version": _score_model_version(artifact.llm_config),
        "random_seed": 0.0 if parameters.seed is None else 1.0,
        "prompt": _score_prompt(artifact),
        "tool_cache": _score_tool_cache(calls),
        "environment": _score_environment(artifact, environment),
        "parameters": _score_parameters(parameters),
    }
    missing, warnings = [], []
    if breakdown["model_version"] < 0.8:
        missing.append("model_version")
    if breakdown["random_seed"] == 0.0:
        missing.append("random_seed")
        warnings.append("No random seed set - outputs may vary")
    if breakdown["parameters"] < 0.5:
        warnings.append("Temperature > 0 reduces determinism")
    failures = sum(map(has_failed, calls))
    if failures:
        warnings.append(f"{failures} tool calls failed")
    if breakdown["environment"] < 0.5:
        warnings.append("Environment not fully captured")
    # Rounding puts sums of tenths on the same side of a level's bound as exact arithmetic.
    score = round(sum(FACTOR_WEIGHTS[factor] * value for factor, value in breakdown.items()), 6)
    return DeterminismReport(overall_score=score, breakdown=breakdown, missing_fields=missing, warnings=warnings)


def level_from_score(score: float) -> ReplayLevel:
    """Return the replay level of a score from 0 to 1."""
    return "A" if score >= LEVEL_A_SCORE else "B" if score >= LEVEL_B_SCORE else "C"


def _score_model_version(config: LlmConfig | None) -> float:
    if config is None:
        return 0.0
    if config.model_version:
        return 1.0
    # "gpt-4-0613" carries its version in its name.
    if config.model_name and "-" in config.model_name:
        return 0.8
    return 0.3 if config.model_name else 0.0


def _score_prompt(artifact: Artifact) -> float:
    prompt = artifact.resolved_prompt
    if prompt is None:
        return 0.0
    tenths = 3 if prompt.template else 0
    if prompt.final_text:
        tenths += 3 if is_empty(prompt.variables) else 7
    return tenths / 10


def _score_tool_cache(calls: Sequence[ArtifactToolCall]) -> float:
    if not calls:
        return 1.0
    return sum(1 for call in calls if call.cache_key and not has_failed(call)) / len(calls)


def _score_environment(artifact: Artifact, environment: str) -> float:
    tenths = 3 if environment else 0
    if artifact.time_env is not None:
        tenths += 5 if is_empty(artifact.time_env.environment_vars) else 7
    return tenths / 10


def _score_parameters(parameters: SamplingParameters) -> float:
    tenths = _score_temperature(parameters.temperature)
    if parameters.top_p is None or parameters.top_p == 1.0:
        tenths += 3
    elif parameters.top_p > 0.9:
        tenths += 2
    tenths += not parameters.presence_penalty
    tenths += not parameters.frequency_penalty
    return tenths / 10


def _score_temperature(temperature: float | None) -> int:
    if temperature is None:
        return 0
    if temperature == 0.0:
        return 5
    if temperature < 0.3:
        return 3
    return 1 if temperature < 0.7 else 0
