"""Device profiles on disk, and which of them a study's latency model was fitted to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.dashboard.studies import Study, StudyFacts

if TYPE_CHECKING:
    from latency_models.predictors import SubnetPredictor
    from latency_models.profile import DeviceProfile
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
    """Cross-validate a study's predictor on its profile: takes seconds, unless that was done before and kept.

    Raises:
        ValueError: The profile cannot be read or has too few rows.
    """
    kept = kept_trust(path, predictor, confidence)
    return kept or whole_trust(quick_trust(path, predictor, confidence), path, predictor)


def quick_trust(path: Path, predictor: str, confidence: float) -> Trust:
    """The cross-validation without its learning curve, which takes most of the time.

    Raises:
        ValueError: The profile cannot be read or has too few rows.
    """
    from latency_models.profile import DeviceProfile
    from latency_models.trust import cross_validate

    profile = DeviceProfile.read(path)
    return cross_validate(profile, _maker(profile, predictor), confidence=confidence, repeats=0)


def whole_trust(trust: Trust, path: Path, predictor: str) -> Trust:
    """The cross-validation with its learning curve, kept beside the profile for the next time."""
    from latency_models.profile import DeviceProfile
    from latency_models.trust import with_learning

    profile = DeviceProfile.read(path)
    whole = with_learning(trust, _maker(profile, predictor))
    known = {**_conditions(path, predictor, trust.confidence), "trust": whole.to_dict()}
    with suppress(OSError):  # Of somebody else, perhaps: then it is drawn again next time.
        aside = path.with_suffix(f".trust.{os.getpid()}")
        aside.write_text(json.dumps(known) + "\n", encoding="utf-8")
        aside.replace(_kept(path))
    return whole


def kept_trust(path: Path, predictor: str, confidence: float) -> Trust | None:
    """What an earlier judging of the same profile gave; None without any."""
    from latency_models.trust import Trust

    try:
        data = json.loads(_kept(path).read_text(encoding="utf-8"))
        wanted = _conditions(path, predictor, confidence)
        return Trust.from_dict(data["trust"]) if {**data, "trust": None} == {**wanted, "trust": None} else None
    except (OSError, ValueError, KeyError, TypeError):
        # It only saves time: whatever is wrong with it, the rows tell the same.
        return None


def _kept(path: Path) -> Path:
    return path.with_suffix(".trust.json")


def _conditions(path: Path, predictor: str, confidence: float) -> dict[str, Any]:
    """What a judging depends on."""
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"format": 1, "release": version("hwnas"), "profile": content, "predictor": predictor, "at": confidence}


def _maker(profile: DeviceProfile, predictor: str) -> Callable[[], SubnetPredictor]:
    from latency_models.predictors import PREDICTORS, SubnetPredictor, auto

    make, header = PREDICTORS.get(predictor, auto), profile.header
    return lambda: SubnetPredictor(header.shape, header.workload, make(0))


def predictor_settings(study: Study) -> tuple[str, float]:
    """Name and confidence of the study's predictor, from the configuration that its search left."""
    directory = study.facts.directory
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8")) if directory else {}
        return str(config["predictor"]["name"]), float(config["objectives"]["confidence"])
    except (OSError, ValueError, KeyError, TypeError):
        return "auto", 0.9
