"""Device profiles on disk, and which of them a study's latency model was fitted to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nas.dashboard.studies import Study, StudyFacts

if TYPE_CHECKING:
    from latency_models.trust import Trust

MOST_HEADER_BYTES = 1 << 20


def find_profile(root: Path, facts: StudyFacts) -> Path | None:
    """The profile of a study's device, teacher, workload and space; None where there is none below the root."""
    context = facts.context
    space = hashlib.sha256(json.dumps(context.get("space"), sort_keys=True).encode()).hexdigest()[:16]
    wanted = {"device": context.get("device"), "workload": context.get("workload"), "teacher": context.get("model")}
    for path in sorted((root / "cache" / "profiles").glob("*.jsonl")):
        try:
            with path.open("rb") as file:
                header = json.loads(file.readline(MOST_HEADER_BYTES))
        except (OSError, ValueError):
            continue
        # As `SearchSpace.fingerprint`; the space itself would need torch to be read.
        same = isinstance(header, dict) and header.get("space") == space
        if same and all(header.get(key) == value for key, value in wanted.items()):
            return path
    return None


def stamp(path: Path) -> tuple[str, int, int]:
    """What changes when a profile does."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def judge(path: Path, predictor: str, confidence: float) -> Trust:
    """Cross-validate a study's predictor on its profile; takes seconds.

    Raises:
        ValueError: The profile cannot be read or has too few rows.
    """
    from latency_models.predictors import PREDICTORS, SubnetPredictor, auto
    from latency_models.profile import DeviceProfile
    from latency_models.trust import cross_validate

    profile = DeviceProfile.read(path)
    make = PREDICTORS.get(predictor, auto)
    shape, workload = profile.header.shape, profile.header.workload
    return cross_validate(profile, lambda: SubnetPredictor(shape, workload, make(0)), confidence=confidence)


def predictor_settings(study: Study) -> tuple[str, float]:
    """Name and confidence of the study's predictor, from the configuration that its search left."""
    directory = study.facts.directory
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8")) if directory else {}
        return str(config["predictor"]["name"]), float(config["objectives"]["confidence"])
    except (OSError, ValueError, KeyError, TypeError):
        return "auto", 0.9
