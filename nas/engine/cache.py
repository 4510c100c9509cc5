"""Evaluations on disk, so that no subnet is evaluated twice under the same conditions.

One JSON line an evaluation, appended under a lock; a line that a dying process left unfinished is ignored and repaired.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.engine.locks import FileLock
from search_spaces.subnet import SubnetConfig


class EvaluationCache:
    """Metrics by canonical subnet, fidelity and context; shared by all processes of a machine.

    Args:
        path: The file; made with its folder on the first `put`.
        context: Everything else that an evaluation depends on (teacher, data, distiller, seed), as plain data. Rows of
            other contexts in the same file are left alone.
    """

    def __init__(self, path: Path | str, context: Mapping[str, Any]) -> None:
        self.path = Path(path)
        text = json.dumps(context, sort_keys=True, default=str)
        self.context = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        self._rows: dict[str, dict[str, float]] = {}
        self._read_to = 0

    def get(self, subnet: SubnetConfig, steps: int) -> dict[str, float] | None:
        """The metrics of a canonical subnet after so many distillation steps, or None."""
        key = self._key(subnet, steps)
        if key not in self._rows:
            self._read()
        row = self._rows.get(key)
        return dict(row) if row is not None else None

    def put(self, subnet: SubnetConfig, steps: int, metrics: Mapping[str, float]) -> None:
        """Remember an evaluation.

        Raises:
            OSError: The file cannot be written.
        """
        values = {name: float(value) for name, value in metrics.items()}
        key = self._key(subnet, steps)
        row = {"key": key, "subnet": subnet.to_dict(), "steps": steps, "metrics": values}
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        with self._lock, self.path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line)
        self._rows[key] = values

    def __len__(self) -> int:
        self._read()
        return len(self._rows)

    def _key(self, subnet: SubnetConfig, steps: int) -> str:
        return hashlib.sha256(f"{self.context}|{steps}|{subnet.to_json()}".encode()).hexdigest()

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                try:
                    row = json.loads(line)
                    self._rows[str(row["key"])] = {str(k): float(v) for k, v in row["metrics"].items()}
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
