"""Devices that are other machines: subnets go there as a bundle, and measurements come back as results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latency_models.bundle import Entry, Plan
    from latency_models.device import Device
    from latency_models.measurement import Measurement
    from latency_models.profile import DeviceProfile
    from latency_models.results import Results
    from nas.measuring import DeviceBench
    from search_spaces.subnet import SubnetConfig


class Elsewhere:
    """What a workbench does with a device that is another machine.

    Args:
        device: The workbench's device.
    """

    def __init__(self, device: DeviceBench) -> None:
        self.bench = device.bench
        self.device = device
        self.settings = device.settings

    # -- profile ----------------------------------------------------------------------------------------------------

    def profile(self) -> DeviceProfile:
        """The device's profile: imported, stored, or measured over ssh.

        Raises:
            ValueError: There is none, and the device can only be reached by carrying a bundle there.
            ResultsError: Results to be imported are damaged, unfinished, or of another bundle.
            RemoteError: The device cannot be reached.
        """
        bench, wanted = self.bench, self.settings["import"]
        if wanted is not None:
            check_elsewhere(bench.device, "`profile.import`")
            return self.imported(Path(wanted))
        stored = self.stored()
        if stored is not None and not stored.missing(self._subnets()):
            bench.say(f"Reusing the profile {stored.path}: {len(stored.latest())} subnets.")
            return stored
        if bench.device.transport == "ssh":
            from latency_models.remote import RemoteBundle

            directory, manifest = self.write()
            with bench.stage("profile"):
                results = RemoteBundle(bench.device, directory, manifest["id"]).measure(bench.say)
                return self.imported(results)
        if stored is not None:
            bench.say(f"Using the profile {stored.path}: {len(stored.latest())} subnets.")
            return stored
        raise ValueError(
            f"device {bench.device.name!r} has no profile yet: write a bundle with `nas bundle` and the same options, "
            "run it there, and bring its results home with `nas profile profile.import=results.jsonl`."
        )

    def stored(self) -> DeviceProfile | None:
        """The newest profile that was brought home from this device, or None."""
        from latency_models.profile import DeviceProfile

        found = [
            path for path in self._folder.glob(f"{self.bench.device.name}-*-{self.device.key}.jsonl") if path.is_file()
        ]
        return DeviceProfile.read(max(found, key=lambda path: path.stat().st_mtime)) if found else None

    def imported(self, path: Path) -> DeviceProfile:
        """Check results and merge them into the device's profile; what is there already is left out.

        Raises:
            ResultsError: They are damaged, unfinished, or of another bundle.
            ValueError: They were measured for another device, teacher, space or workload.
        """
        from latency_models.bundle_results import header_of, measurements_of
        from latency_models.profile import DeviceProfile
        from latency_models.results import read_results

        results = read_results(path)
        manifest = self._manifest(path, results)
        self._check_finished(results, manifest)
        header = header_of(manifest, results.fingerprint)
        own = self.device.header(results.fingerprint)
        for name in ("device", "workload", "space", "shape", "teacher"):
            mine, theirs = getattr(own, name), getattr(header, name)
            if mine != theirs:
                raise ValueError(
                    f"{path}: was measured for another {name} than the options say; give those of its bundle "
                    f"({_short(theirs)} there, {_short(mine)} here)."
                )
        profile = DeviceProfile.open(self.device.path_of(results.fingerprint), header)
        known = {(row.subnet, row.measurement.times) for row in profile.rows}
        fresh = 0
        for subnet, measurement in measurements_of(results, manifest):
            if (self.bench.space.canonical(subnet), measurement.times) not in known:
                profile.append(subnet, measurement)
                fresh += 1
        self.bench.say(f"Imported {fresh} measurements of {path} into {profile.path}.")
        return profile

    # -- bundle -----------------------------------------------------------------------------------------------------

    def write(self, directory: Path | None = None) -> tuple[Path, dict[str, Any]]:
        """Write the bundle of this configuration; returns its folder and its manifest."""
        from latency_models.bundle import write_bundle

        bench = self.bench
        directory = directory or bench.cache / "bundles" / f"{bench.device.name}-{self.device.key}"
        if (found := self._same_bundle(directory)) is not None:
            bench.say(f"Reusing the bundle {directory}.")
            return directory, found
        directory.parent.mkdir(parents=True, exist_ok=True)
        subnets = self._subnets()
        inputs = {name: value.numpy() for name, value in self.device.inputs.items()}
        with bench.stage("bundle"), bench.progress("Writing the bundle", len(subnets)) as bar:

            def entries() -> Iterator[Entry]:
                for subnet in subnets:
                    yield self._entry(subnet, inputs)
                    bar.advance()

            reference = self._entry(bench.space.teacher, inputs)
            manifest = write_bundle(directory, self._plan(), reference, entries(), inputs)
        kept = bench.cache / "bundles" / f"{manifest['id']}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(manifest), encoding="utf-8")
        return directory, manifest

    def measure_graphs(
        self,
        graphs: Sequence[tuple[SubnetConfig, Path]],
        reference: Path,
        protocol: Mapping[str, Any],
        directory: Path,
    ) -> list[Measurement | None]:
        """Measure exported graphs on the device, beside a reference.

        Over ssh at once. Otherwise a bundle is written, and measured is what its results say once they are in it.

        Args:
            graphs: Subnets with their ONNX files.
            reference: The file that is measured throughout.
            protocol: Arguments of `latency_models.profiler.Profiler`.
            directory: Where the bundle lies.
        """
        from latency_models.backends.graph_file import load_graph
        from latency_models.bundle import Entry, read_manifest, write_bundle
        from latency_models.bundle_results import measurement_of
        from latency_models.remote import RemoteBundle
        from latency_models.results import MANIFEST, RESULTS, read_results

        bench, plan = self.bench, replace(self._plan(), protocol=protocol, converted=True)
        wanted = [subnet.to_dict() for subnet, _ in graphs]
        manifest = read_manifest(directory / MANIFEST)
        # Distilling anew changes weights, which latency does not depend on.
        if manifest is None or [entry["subnet"] for entry in manifest["subnets"]] != wanted:
            entries = (Entry(subnet, load_graph(file), {}) for subnet, file in graphs)
            inputs = {name: value.numpy() for name, value in self.device.inputs.items()}
            manifest = write_bundle(directory, plan, Entry(None, load_graph(reference), {}), entries, inputs)
        if bench.device.transport == "ssh":
            RemoteBundle(bench.device, directory, manifest["id"]).measure(bench.say)
        elif not (directory / RESULTS).is_file():
            bench.notes.append(
                f"The finalists were not measured: {bench.device.name} is another machine. Run {directory}/run.py "
                "there, put its results.jsonl into that folder, and search again: nothing else is repeated."
            )
            bench.say(bench.notes[-1])
            return [None] * len(graphs)
        results = read_results(directory / RESULTS, manifest["id"])
        found = {row["name"]: measurement_of(row, results.path) for row in results.rows}
        return [found.get(entry["name"]) for entry in manifest["subnets"]]

    def _entry(self, subnet: SubnetConfig, inputs: Mapping[str, Any]) -> Entry:
        from latency_models.backends.base import make_backend
        from latency_models.backends.quantize import at_precision
        from latency_models.bundle import Entry
        from latency_models.device import Device

        target, graph = self.bench.device, self.device.graph(subnet)
        if not self._plan().converted:
            # What the device makes of the graph itself cannot be computed here.
            return Entry(subnet, graph, {})
        form = "qdq" if target.backend == "tensorrt" else "operators"
        graph = at_precision(graph, target.precision, form=form, calibration=(inputs,))  # type: ignore[arg-type]
        expected = make_backend(Device("home", "onnxruntime")).compile(graph, inputs).outputs()
        main = self.bench.task.output_names[-1]
        return Entry(subnet, graph, {main: expected[main]})

    def _plan(self) -> Plan:
        from latency_models.bundle import Plan

        bench, target = self.bench, self.bench.device
        return Plan(
            device=target,
            workload=bench.workload,
            space=bench.space.fingerprint,
            shape=bench.space.shape,
            teacher=bench.teacher_hash,
            protocol={name: value for name, value in self.settings["protocol"].items() if name != "isolate"},
            seed=bench.seed,
            # OpenVINO brings a graph to its own kinds of int8 itself; static scales are the device's own option, too.
            converted=target.backend in ("onnxruntime", "tensorrt") and "quantization" not in target.options,
        )

    def _same_bundle(self, directory: Path) -> dict[str, Any] | None:
        """The manifest of a bundle that was made for the very same, or None."""
        from latency_models.bundle import read_manifest
        from latency_models.results import MANIFEST

        manifest = read_manifest(directory / MANIFEST)
        if manifest is None:
            return None
        plan = self._plan()
        same = {
            "device": plan.device.to_dict(),
            "workload": plan.workload.to_dict(),
            "space": plan.space,
            "teacher": plan.teacher,
            "protocol": dict(plan.protocol),
            "seed": plan.seed,
        }
        wanted = [subnet.to_dict() for subnet in self._subnets()]
        fits = all(manifest.get(name) == value for name, value in same.items())
        return manifest if fits and [entry["subnet"] for entry in manifest["subnets"]] == wanted else None

    def _subnets(self) -> list[SubnetConfig]:
        """What is measured: those that judge the predictor, and a design as large as the profile."""
        from latency_models.active import ActiveProfiling

        bench, judges = self.bench, self.device.judges
        design = ActiveProfiling(
            bench.space, bench.workload, start=int(self.settings["num_subnets"]), seed=bench.seed, exclude=judges
        ).design()
        return [*sorted(judges, key=lambda subnet: subnet.to_json()), *design]

    # -- results ----------------------------------------------------------------------------------------------------

    def _manifest(self, path: Path, results: Results) -> dict[str, Any]:
        """The manifest of the bundle that results are of: kept when the bundle was made, or beside them."""
        from latency_models.bundle import read_manifest
        from latency_models.results import MANIFEST, ResultsError

        kept = self.bench.cache / "bundles" / f"{results.bundle}.json"
        for file in (kept, path.parent / MANIFEST):
            manifest = read_manifest(file)
            if manifest is not None and manifest["id"] == results.bundle:
                return manifest
        raise ResultsError(
            f"{path}: is of bundle {results.bundle}, which was not made under {self.bench.root}; "
            "import it from inside its bundle's folder, or under the root that made it."
        )

    def _check_finished(self, results: Results, manifest: Mapping[str, Any]) -> None:
        from latency_models.results import ResultsError

        done, total = len({row["name"] for row in results.rows}), len(manifest["subnets"])
        if not results.finished and not self.settings["partial"]:
            cut = " and its last line is cut short" if results.torn else ""
            raise ResultsError(
                f"{results.path}: holds {done} of {total} subnets{cut}: let `python run.py` finish on the device and "
                "copy it again, or take what is there with profile.partial=true."
            )

    @property
    def _folder(self) -> Path:
        return self.bench.cache / "profiles"


def check_elsewhere(device: Device, what: str) -> None:
    """Refuse a device of this machine, which is measured here and needs nothing brought home.

    Args:
        device: The configuration's.
        what: What was asked for.

    Raises:
        ValueError: The device is of this machine.
    """
    if device.transport == "local":
        raise ValueError(
            f"{what} is for a device that is another machine, but {device.name} is this one; name the other, for "
            "example with device=another device.name=NAME device.threads=4."
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
