"""Where studies are kept."""

from __future__ import annotations

import pytest

from nas.engine.storage import DatabaseStorage, JournalStorage, ProxyStorage, hide_password


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


def test_what_cannot_be_reached_is_refused_before_any_work(tmp_path):
    DatabaseStorage(f"sqlite:///{tmp_path / 'study.db'}").check()
    JournalStorage().check()
    with pytest.raises(OSError, match="cannot open sqlite") as refused:
        DatabaseStorage(f"sqlite:///{tmp_path / 'nowhere' / 'study.db'}").check()
    assert "unable to open database file" in str(refused.value)
    with pytest.raises(OSError, match="no server answers at grpc://localhost:1"):
        ProxyStorage(port=1, timeout_s=0.2).check()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:s3cr3t@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql://me:p@s3cr3t@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p/s3cr3t@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me:my s3cr3t@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=s3cr3t&port=1", "postgresql://host/db?user=me&password=***&port=1"),
        ("a://me:s3cr3t@one and b://you:s3cr3t@two", "a://me:***@one and b://you:***@two"),
        ('{"url": "a://me:s3cr3t@one", "mail": "me@two"}', '{"url": "a://me:***@one", "mail": "me@two"}'),
        ("- storage.url=a://me:s3cr3t@one\n- mail=me@two", "- storage.url=a://me:***@one\n- mail=me@two"),
        (r"url=a\://me\:s3cr3t@one\:1/db", r"url=a\://me\:***@one\:1/db"),
        ("http://localhost:8080/me", "http://localhost:8080/me"),
    ],
)
def test_passwords_of_any_form_are_hidden_and_nothing_else(text, shown):
    assert hide_password(text) == shown


def test_a_url_that_is_none_is_not_repeated():
    with pytest.raises(ValueError, match="no ://") as raised:
        DatabaseStorage("me:s3cr3t@host/db")
    assert "s3cr3t" not in str(raised.value)
