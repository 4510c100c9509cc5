"""Where studies are kept."""

from __future__ import annotations

import pytest

from nas.engine.storage import DatabaseStorage


def test_a_database_whose_tables_another_worker_is_making_is_opened_a_moment_later(monkeypatch, tmp_path):
    import optuna

    answers = [
        RuntimeError('duplicate key: Key (typname)=(studydirection) already exists. "postgresql://a:s3cr3t@h/n"')
    ]
    real = optuna.storages.RDBStorage

    def make(url, **options):
        if answers:
            raise answers.pop()
        return real(url, **options)

    monkeypatch.setattr(optuna.storages, "RDBStorage", make)
    monkeypatch.setattr("nas.engine.storage.time.sleep", lambda _: None)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    opened = DatabaseStorage(url).open(tmp_path)
    assert not answers
    opened.disconnect()
    answers += [RuntimeError("it already exists")] * 99
    with pytest.raises(OSError, match="cannot open sqlite"):
        DatabaseStorage(url).open(tmp_path)
