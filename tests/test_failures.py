"""What the command line says of an exception: one line, whatever it is, and a traceback only where one is asked for."""

from __future__ import annotations

import pytest
import yaml

from nas.failures import guarded


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("`steps` must be >= 1,\nbut got 0."), 2, "nas: `steps` must be >= 1, but got 0.  (--debug"),
        (RuntimeError("no server answers"), 1, "nas: no server answers  (--debug"),
        (FileNotFoundError(2, "No such file", "x.csv"), 2, "nas: x.csv: No such file; is the path right"),
        (yaml.YAMLError("mapping values are not allowed here"), 2, "must be valid YAML, but: mapping values"),
        (
            TypeError("'float' object is not iterable"),
            1,
            "nas: TypeError: 'float' object is not iterable. Has an option",
        ),
        (KeyboardInterrupt(), 130, "nas: stopped by Ctrl-C"),
    ],
)
def test_every_exception_is_one_line(error, code, said, capsys):
    assert guarded(raising(error), "search", debug=False) == code
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_a_traceback_is_there_for_who_asks(capsys):
    with pytest.raises(TypeError, match="not iterable"):
        guarded(raising(TypeError("not iterable")), "search", debug=True)
    assert capsys.readouterr().err == ""
