"""Profiles survive kills, hands and garbage."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latency_models.device import Device
from latency_models.measurement import Measurement
from latency_models.profile import MAX_TRIES, DeviceProfile, Header, ProfileError, training_data
from search_spaces.cost import Workload
from tests.models import tiny_bert, tiny_space

SPACE = tiny_space(tiny_bert())
SUBNETS = list(dict.fromkeys(SPACE.sample(np.random.default_rng(0), 30)))[:12]
DEVICE = Device("cpu", "onnxruntime")
HEADER = Header(
    device=DEVICE.to_dict(),
    fingerprint=DEVICE.fingerprint(),
    workload=Workload(1, 16),
    space=SPACE.fingerprint,
    shape=SPACE.shape,
    teacher="tiny",
)


def measurement(value=1.0, start=0.0, drift=0.0):
    return Measurement(
        samples=(value, value + 0.5, value + 0.75),
        times=(start, start + 1, start + 2),
        order=(3, 4, 5),
        reference=(2.0 * (1 + drift),) * 3,
        reference_level=2.0,
    )


def filled(path, count=4):
    profile = DeviceProfile.open(path, HEADER)
    for index, subnet in enumerate(SUBNETS[:count]):
        profile.append(subnet, measurement(index + 1.0, start=10.0 * index), {"peak_memory_mb": 50.0 + index})
    return profile


def edit(path, line, change):
    lines = path.read_text().splitlines()
    data = json.loads(lines[line - 1])
    change(data)
    lines[line - 1] = json.dumps(data)
    path.write_text("\n".join(lines) + "\n")


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "profile.jsonl"
    written = filled(path)
    read = DeviceProfile.read(path)
    assert read.header == HEADER
    assert read.rows == written.rows
    assert read.problems == []
    assert read.content_hash == written.content_hash
    assert [row.measurement for row in read.rows] == [measurement(i + 1.0, start=10.0 * i) for i in range(4)]
    subnets, values = read.training_data()
    assert subnets == SUBNETS[:4]
    assert values.tolist() == [i + 1.5 for i in range(4)]
    assert read.training_data("peak_memory_mb")[1].tolist() == [50, 51, 52, 53]
    assert read.quantities == ["latency_ms", "peak_memory_mb"]
    assert read.reference_level == 2.0


def test_only_what_is_missing_is_measured(tmp_path):
    filled(tmp_path / "p.jsonl", 4)
    profile = DeviceProfile.open(tmp_path / "p.jsonl", HEADER)
    assert profile.missing([*SUBNETS[:6], SUBNETS[5]]) == SUBNETS[4:6]
    profile.append(SUBNETS[4], measurement())
    assert profile.missing(SUBNETS[:6]) == [SUBNETS[5]]


def test_of_repeated_rows_the_one_with_the_least_drift_counts(tmp_path):
    profile = DeviceProfile.open(tmp_path / "p.jsonl", HEADER)
    for value, drift in ((1.0, 0.2), (2.0, 0.01), (3.0, -0.1)):
        profile.append(SUBNETS[0], measurement(value, drift=drift))
    assert len(profile) == 3
    assert profile.latest()[SUBNETS[0]].measurement.samples[0] == 2.0
    assert len(profile.training_data()[0]) == 1


def test_rows_of_a_machine_off_its_usual_level_count_relative_to_the_reference(tmp_path):
    profile = DeviceProfile.open(tmp_path / "p.jsonl", HEADER)
    for subnet, drift in zip(SUBNETS[:5], (0.0, 0.02, 0.5, 0.0, 0.0), strict=True):
        profile.append(subnet, measurement(4.0, drift=drift))
    assert profile.reference_level == 2.0
    assert profile.training_data()[1] == pytest.approx([4.5, 4.5, 4.5 / 1.5, 4.5, 4.5])


def test_what_a_session_took_for_usual_when_it_wrote_a_row_does_not_matter(tmp_path):
    """A busy first minute is the only level that the first rows know; the quiet rest shows it for what it was."""
    profile = DeviceProfile.open(tmp_path / "p.jsonl", HEADER)
    for index, subnet in enumerate(SUBNETS[:6]):
        busy = index < 2
        own = measurement(5.0 if busy else 4.0, drift=0.25 if busy else 0.0)
        profile.append(subnet, replace(own, reference_level=2.5 if index < 4 else 2.0))
    assert profile.reference_level == 2.0
    assert profile.training_data()[1] == pytest.approx([5.5 / 1.25] * 2 + [4.5] * 4)
    drifts = [row.measurement.drift for row in profile.latest().values()]
    assert drifts == pytest.approx([0.25] * 2 + [0.0] * 4)


def test_rows_of_a_machine_with_no_time_for_us_do_not_count_and_are_measured_again(tmp_path):
    """Beside work that takes most of the processor, subnets are not slowed in proportion: a row may be off 40 times."""
    profile = DeviceProfile.open(tmp_path / "p.jsonl", HEADER)
    for subnet, value, drift in zip(SUBNETS[:5], (4.0, 4.0, 300.0, 4.0, 4.0), (0.0, 0.0, 40.0, 0.9, 0.0), strict=True):
        profile.append(subnet, measurement(value, drift=drift))
    assert list(profile.latest()) == [SUBNETS[i] for i in (0, 1, 3, 4)]
    assert len(profile.training_data()[0]) == 4
    assert profile.missing(SUBNETS[:5]) == [SUBNETS[2]]
    profile.append(SUBNETS[2], measurement(4.0))
    assert profile.missing(SUBNETS[:5]) == []
    assert len(profile.training_data()[0]) == 5


def test_who_never_meets_a_quiet_machine_is_not_measured_for_ever(tmp_path):
    profile = DeviceProfile.open(tmp_path / "p.jsonl", HEADER)
    for subnet in SUBNETS[:5]:
        profile.append(subnet, measurement(4.0))
        profile.append(subnet, measurement(4.0))
    for _ in range(MAX_TRIES):
        assert profile.missing(SUBNETS[:6]) == [SUBNETS[5]]
        profile.append(SUBNETS[5], measurement(300.0, drift=40.0))
    assert profile.missing(SUBNETS[:6]) == []
    assert SUBNETS[5] not in profile.latest()


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_killed_writer_costs_at_most_its_last_line(tmp_path, cut):
    path = tmp_path / "p.jsonl"
    filled(path, 4)
    path.write_bytes(path.read_bytes()[:-cut])
    looked = DeviceProfile.read(path)
    whole = 4 if cut == 1 else 3
    assert len(looked) == whole
    assert [str(problem) for problem in looked.problems] == (
        [] if cut == 1 else [f"{path}, line 5: the line is cut short."]
    )
    resumed = DeviceProfile.open(path, HEADER)
    for subnet in resumed.missing(SUBNETS[:4]):
        resumed.append(subnet, measurement())
    again = DeviceProfile.read(path)
    assert len(again) == 4
    assert again.problems == []


def test_a_killed_first_line_begins_anew(tmp_path):
    path = tmp_path / "p.jsonl"
    filled(path, 0)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ProfileError, match="line 1: not valid JSON"):
        DeviceProfile.read(path)
    assert len(DeviceProfile.open(path, HEADER)) == 0
    assert DeviceProfile.read(path).header == HEADER


def broken(**changes):
    return lambda data: data.update(changes)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (broken(samples=[1.0, -2.0]), "`samples` must be positive numbers, but got -2.0"),
        (broken(samples=[float("nan")]), "numbers must be finite, but got NaN"),
        (broken(samples=[float("inf")]), "numbers must be finite, but got Infinity"),
        (broken(samples=[]), "there must be at least one sample"),
        (broken(samples="fast"), "`samples` must be a list, but got 'fast'"),
        (broken(samples=[True]), "`samples` must be numbers, but got True"),
        (broken(samples=[10**400]), "`samples` must be finite numbers"),
        (broken(unit="s"), "`unit` must be 'ms' as in the header, but got 's'"),
        (broken(fingerprint="0123"), "`fingerprint` must be '[0-9a-f]{12}' as in the header, but got '0123'"),
        (broken(subnet={"hidden_size": 32, "blocks": []}), "`blocks` must not be empty"),
        (broken(subnet=7), "`subnet` must be an object, but got 7"),
        (broken(order=[1]), "`order` must be as long as the samples, 3, not 1"),
        (broken(meters={"peak_memory_mb": -1}), "`meters.peak_memory_mb` must not be negative"),
        (broken(colour="red"), "unknown key 'colour'"),
        (lambda data: data["subnet"]["blocks"].pop(), "`subnet` must have 3 blocks, but has 2"),
        (lambda data: data["subnet"]["blocks"][0].update(ffn=4096), "`ffn` must be at most the teacher's 64"),
    ],
)
def test_a_bad_row_is_told_with_file_line_and_rule_and_the_good_ones_survive(tmp_path, change, rule):
    path = tmp_path / "p.jsonl"
    profile = DeviceProfile.open(path, HEADER)
    block = type(SPACE.teacher.blocks[0])
    for index in range(4):
        profile.append(SPACE.teacher.with_block(0, block(1 + index, 1 + index, 64)), measurement(index + 1.0))
    edit(path, 3, change)
    read = DeviceProfile.open(path, HEADER)
    assert len(read) == 3
    (problem,) = read.problems
    assert problem.line == 3
    assert str(problem).startswith(f"{path}, line 3: ")
    with pytest.raises(ValueError, match=rule):
        raise ValueError(str(problem))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"kind": "recipe"}, "the first line must be a header"),
        ({"schema": 99}, "`schema` must be 1, but got 99"),
        ({"unit": "s"}, "`unit` must be 'ms', but got 's'"),
        ({"workload": {"batch": 1}}, "`workload` has other keys"),
        ({"workload": {"batch_size": -1}}, "`batch_size` must be a whole number >= 1, but got -1"),
        ({"shape": {"heads": 1}}, "`shape.family` must be of type str"),
        ({"space": None}, "`space` must be a text, but got None"),
        ({"fingerprint": []}, "`fingerprint` must be an object"),
    ],
)
def test_a_bad_header_is_an_error_on_line_1(tmp_path, change, rule):
    path = tmp_path / "p.jsonl"
    filled(path, 1)
    edit(path, 1, lambda data: data.update(change))
    with pytest.raises(ProfileError, match=rule) as failure:
        DeviceProfile.read(path)
    assert str(failure.value).startswith(f"{path}, line 1: ")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"fingerprint": {"cpu": "abacus"}}, "measured under another fingerprint .*cpu: "),
        ({"workload": Workload(1, 32)}, "`workload` must be .*sequence_length=32"),
        ({"space": "0000"}, "`space` must be '0000', but is"),
        ({"teacher": "other"}, "`teacher` must be 'other', but is 'tiny'"),
    ],
)
def test_profiles_of_something_else_are_not_continued(tmp_path, change, rule):
    path = tmp_path / "p.jsonl"
    filled(path, 2)
    before = path.read_bytes()
    fields = {name: getattr(HEADER, name) for name in HEADER.__slots__} | change
    with pytest.raises(ProfileError, match=rule):
        DeviceProfile.open(path, Header(**fields))
    assert path.read_bytes() == before
    other = DeviceProfile.open(tmp_path / "q.jsonl", Header(**fields))
    other.append(SUBNETS[0], measurement())
    with pytest.raises(ProfileError, match=next(iter(change))):
        training_data([DeviceProfile.read(path), other])


def test_profiles_of_one_device_join(tmp_path):
    first, second = filled(tmp_path / "a.jsonl", 3), filled(tmp_path / "b.jsonl", 2)
    subnets, values = training_data([first, second])
    assert len(subnets) == len(values) == 5


def test_files_that_cannot_be_read_or_written_are_told(tmp_path):
    with pytest.raises(ProfileError, match=r"absent\.jsonl: cannot be read: No such file"):
        DeviceProfile.read(tmp_path / "absent.jsonl")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ProfileError, match="cannot be written"):
        DeviceProfile.open(tmp_path / "file" / "p.jsonl", HEADER)
    with pytest.raises(ProfileError, match="no subnet is measured yet"):
        DeviceProfile.open(tmp_path / "empty.jsonl", HEADER).training_data()
    with pytest.raises(ProfileError, match="no row has the quantity 'energy_mj'; they have latency_ms, peak_memory_mb"):
        filled(tmp_path / "p.jsonl").training_data("energy_mj")
    with pytest.raises(ProfileError, match="`heads` must be at most the teacher's 4, but got 9"):
        filled(tmp_path / "q.jsonl").append(
            SPACE.teacher.with_block(0, type(SPACE.teacher.blocks[0])(9, 9, 8)), measurement()
        )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FAST = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def check_survival(path, garbage):
    """Whatever lies between good rows, they are read, and the profile can be continued."""
    path.unlink(missing_ok=True)
    filled(path, 2)
    good = path.read_bytes()
    path.write_bytes(good + garbage)
    read = DeviceProfile.read(path)
    assert len(read.rows) >= 2
    assert all(problem.line >= 4 for problem in read.problems)
    assert all(len(row.subnet.blocks) == 3 for row in read.rows)
    resumed = DeviceProfile.open(path, HEADER)
    resumed.append(SUBNETS[7], measurement())
    assert DeviceProfile.read(path).rows[-1].subnet == SUBNETS[7]


@FAST
@given(garbage=st.binary(max_size=200))
def test_bytes_of_garbage_never_crash_the_reader(tmp_path, garbage):
    check_survival(tmp_path / "p.jsonl", garbage)


@FAST
@given(values=st.lists(JSON_VALUES, max_size=4))
def test_json_of_garbage_never_crashes_the_reader(tmp_path, values):
    check_survival(tmp_path / "p.jsonl", "".join(json.dumps(value) + "\n" for value in values).encode())


@FAST
@given(key=st.sampled_from(sorted(["subnet", "samples", "times", "order", "reference", "reference_level", "meters"])),
       value=JSON_VALUES)  # fmt: skip
def test_rows_with_one_mad_field_never_crash_the_reader(tmp_path, key, value):
    path = tmp_path / "p.jsonl"
    path.unlink(missing_ok=True)
    filled(path, 1)
    row = json.loads(path.read_text().splitlines()[1]) | {key: value}
    check_survival(path, json.dumps(row).encode() + b"\n")


@FAST
@given(value=JSON_VALUES, key=st.sampled_from(sorted(HEADER.to_dict())))
def test_mad_headers_are_profile_errors_or_fine(tmp_path, key, value):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(HEADER.to_dict() | {key: value}) + "\n")
    with contextlib.suppress(ProfileError):
        assert len(DeviceProfile.read(path)) == 0


def test_deep_nesting_and_blank_lines_are_only_bad_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    filled(path, 2)
    with path.open("ab") as file:
        file.write(b"\n  \n" + b"[" * 100_000 + b"\n")
    read = DeviceProfile.read(path)
    assert len(read) == 2
    assert [problem.line for problem in read.problems] == [6]
